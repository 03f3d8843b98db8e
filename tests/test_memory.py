"""What the C library does with memory that tensors leave."""

import platform
import subprocess
import sys

import pytest

PIECES = """
import resource
import torch
from pyro_vae._support.memory import keep_freed_memory

def pages_asked_for():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        pieces = [torch.ones(2_500_000) for _ in range(4)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
pages_asked_for()
print(pages_asked_for(), 10 * 4 * 10_000_000 // resource.getpagesize())
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)
def test_pieces_of_some_megabytes_are_not_asked_of_the_system_again():
    ran = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    asked_for, written = map(int, ran.stdout.split())
    assert asked_for < written / 10
