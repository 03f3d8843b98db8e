"""The examples of levels and codes make their pictures."""

import sys
from pathlib import Path

import pytest
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
