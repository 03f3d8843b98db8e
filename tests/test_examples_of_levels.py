"""The examples of levels and codes make their pictures, and their documents' code runs."""

import re
import sys
from pathlib import Path

import pytest
import torch
from examples import codes, ladder
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("example", [ladder, codes], ids=["ladder", "codes"])
def test_an_example_makes_its_picture(tmp_path, capsys, example):
    example.main(out=tmp_path / "picture.png", epochs=1)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 1000
    assert "nats" in capsys.readouterr().out
    assert len(Path(sys.modules[example.__name__].__file__).read_text().splitlines()) <= 60
    assert (DOCS / "images" / "programs" / f"{example.__name__.split('.')[-1]}.png").stat().st_size < 150_000


@pytest.mark.parametrize("section", ["Several levels of latents", "Codes"])
def test_the_code_of_a_section_runs(section):
    text = (DOCS / "programs-premade.md").read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    x = torch.randint(0, 17, (32, 8, 8)).float()
    exec(
        code.replace("fit(vae, x", "fit(vae, x, epochs=1, progress=False").replace(
            "fit(other, x", "fit(other, x, epochs=1"
        ),
        {"x": x},
    )
