"""Runs train, sample, predict and impute on data of many kinds, and writes docs/ways-in.md.

Each data set is made here, trained on, sampled, and written out again; observed values must come back unchanged.
"""

import contextlib
import csv
import gzip
import io
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from PIL import Image

from pyro_vae.cli.commands import impute, predict, sample, train
from pyro_vae.cli.running import run_command

PAGE = Path(__file__).parents[1] / "docs" / "ways-in.md"
COMMANDS = {"train": train.main, "sample": sample.main, "predict": predict.main, "impute": impute.main}
SHORT = ("--epochs", "5", "--hidden-dims", "16", "--latent-dim", "2", "--compile", "no")
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Way:
    """One kind of data.

    Args:
        title: Name of the data.
        make: Writes it into a folder and returns its path.
        options: Options of ``pyro-vae train``.
        refused: Words of the error without ``options``, if there is one.
        trains: Whether training on it is possible.
        returns: Checks that observed values come back; takes the original path and the written file.
        out: Name of the written file.
    """

    title: str
    make: Callable[[Path], Path]
    options: tuple[str, ...] = ()
    refused: str = ""
    trains: bool = True
    returns: Callable[[Path, Path], None] = field(default=lambda made, written: None)
    out: str = "predictions.npz"


def run(command: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = [f"pyro-vae {command}", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_command(COMMANDS[command])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception:
        status, _ = 1, err.write(traceback.format_exc())
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


# --- what is made


def patients(num_rows: int = 60) -> pd.DataFrame:
    """A table with columns of several kinds, and gaps."""
    frame = pd.DataFrame(
        {
            "Größe": RNG.normal(170, 9, num_rows).round(1),
            "Alter": RNG.integers(18, 90, num_rows).astype(float),
            "Raucher": RNG.choice(["ja", "nein"], num_rows),
            "Stadium": RNG.choice(["früh", "mittel", "spät"], num_rows),
        }
    )
    return frame.mask(RNG.random(frame.shape) < 0.1)


def european(folder: Path) -> Path:
    """Semicolons, decimal commas, Windows letters, an id and German dates."""
    frame = patients()
    frame.insert(0, "Patienten Nr", [f"P{number:04d}" for number in range(len(frame))])
    frame["Aufnahme"] = [f"{day:%d.%m.%Y}" for day in pd.date_range("2024-01-20", periods=len(frame), freq="5D")]
    frame["Alter"] = [None if pd.isna(age) else str(int(age)) for age in frame["Alter"]]
    path = folder / "patienten.csv"
    frame.to_csv(path, sep=";", decimal=",", index=False, encoding="cp1252")
    return path


def excel(folder: Path) -> Path:
    """A workbook with one sheet."""
    path = folder / "patients.xlsx"
    patients().to_excel(path, index=False)
    return path


def parquet(folder: Path) -> Path:
    """Typed columns."""
    path = folder / "patients.parquet"
    patients().astype({"Stadium": "category"}).to_parquet(path)
    return path


def nested(folder: Path) -> Path:
    """A column of lists."""
    path = folder / "nested.parquet"
    pd.DataFrame({"age": [1.5, 2.5], "visits": [[1, 2], [3]]}).to_parquet(path)
    return path


def with_index(folder: Path) -> Path:
    """The output of ``frame.to_csv(path)``, with a large id."""
    frame = patients()
    frame["Konto"] = 1_700_000_001 + RNG.integers(0, 10**6, len(frame)) * 3
    path = folder / "frame.csv"
    frame.to_csv(path)
    return path


def without_names(folder: Path) -> Path:
    """Rows of numbers, and no first row with names."""
    path = folder / "headerless.csv"
    pd.DataFrame(RNG.normal(size=(60, 4)).round(3)).to_csv(path, header=False, index=False)
    return path


def survey(folder: Path) -> Path:
    """Answers from 1 to 5 with skips, tab-separated, gzipped."""
    answers = pd.DataFrame(RNG.integers(1, 6, (80, 5)).astype(float), columns=[f"Q{n}" for n in range(1, 6)])
    answers = answers.mask(RNG.random(answers.shape) < 0.2)
    path = folder / "survey.tsv.gz"
    with gzip.open(path, "wt") as file:
        answers.to_csv(file, sep="\t", index=False, float_format="%.0f")
    return path


def utf16(folder: Path) -> Path:
    """Excel's “Unicode text”."""
    path = folder / "unicode.txt"
    patients().to_csv(path, sep="\t", index=False, encoding="utf-16")
    return path


def tiny(folder: Path) -> Path:
    """Fifteen rows."""
    path = folder / "tiny.csv"
    pd.DataFrame({"dose": RNG.gamma(2, 3, 15).round(2), "cured": RNG.choice([True, False], 15)}).to_csv(
        path, index=False
    )
    return path


def cells(folder: Path) -> Path:
    """Counts of genes in cells, sparse, with names."""
    import anndata  # pyright: ignore[reportMissingImports]
    import scipy.sparse

    counts = scipy.sparse.csr_matrix(RNG.negative_binomial(2, 0.4, (60, 30)).astype(np.float32))
    names = pd.DataFrame(index=pd.Index([f"cell-{number}" for number in range(60)], dtype=object))
    path = folder / "cells.h5ad"
    genes = pd.DataFrame(index=pd.Index([f"gene-{number}" for number in range(30)], dtype=object))
    anndata.AnnData(counts, obs=names, var=genes).write_h5ad(path)
    return path


def named_arrays(folder: Path) -> Path:
    """Rows, labels and ids in one file."""
    path = folder / "labelled.npz"
    x = RNG.integers(0, 256, (60, 6, 6)).astype(np.uint8)
    np.savez(path, x=x, y=RNG.choice(["owl", "cat"], 60), ids=np.arange(60) + 10**12)
    return path


def saved(name: str, x: np.ndarray) -> Callable[[Path], Path]:
    """An array in its own file."""

    def make(folder: Path) -> Path:
        np.save(folder / name, x)
        return folder / name

    return make


def sparse(folder: Path) -> Path:
    """A SciPy matrix."""
    import scipy.sparse

    path = folder / "sparse.npz"
    scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(RNG.poisson(0.3, (60, 20)) * RNG.random((60, 20))))
    return path


def images(mode: str, suffix: str, draw: Callable[[int], Any], **options: Any) -> Callable[[Path], Path]:
    """A folder of images."""

    def make(folder: Path) -> Path:
        for number in range(30):
            here = folder / "images" / ("left" if number % 2 else "right")
            here.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(draw(number)).convert(mode) if mode else Image.fromarray(draw(number))
            image.save(here / f"{number:03d}.{suffix}", **options)
        return folder / "images"

    return make


def photograph(number: int) -> np.ndarray:
    """Smooth colours, in two sizes."""
    height, width = (24, 32) if number % 3 else (48, 64)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = np.sin(6 * (RNG.random() * x + RNG.random() * y)[..., None] + 6 * RNG.random(3))
    return (255 * (0.5 + 0.5 * waves)).astype(np.uint8)


def phone(folder: Path) -> Path:
    """Photographs with the orientation in their EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return images("RGB", "jpg", photograph, exif=exif)(folder)


def cut_out(number: int) -> np.ndarray:
    """Blue squares on a transparent ground whose hidden colour is red."""
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[..., 0] = 255
    picture[2:6, number % 4 : number % 4 + 4] = (0, 0, 255, 255)
    return picture


def pages(folder: Path) -> Path:
    """A stack of pictures in one file."""
    (folder / "stack").mkdir()
    stack = [Image.fromarray(RNG.integers(0, 256, (8, 8)).astype(np.uint8)) for _ in range(5)]
    stack[0].save(folder / "stack" / "scan.tif", save_all=True, append_images=stack[1:])
    return folder / "stack"


# --- what has to come back


def cells_of(path: Path) -> list[list[str]]:
    """A delimited file's fields as text."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for encoding in ("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode(encoding)
            break
    separator = max(";\t,", key=text.splitlines()[0].count)
    return list(csv.reader(io.StringIO(text), delimiter=separator))


def observed_cells(made: Path, written: Path) -> None:
    """Every observed field is the same in the written file as in the original; every gap is filled."""
    before, after = cells_of(made), cells_of(written)
    if after[0][0] == "draw":  # names of columns
        assert after.pop(0)[1:] == before.pop(0)
    assert len(after) == 2 * len(before), f"{len(after)} rows of twice {len(before)}"
    for number, row in enumerate(after):
        original = before[number % len(before)]
        assert len(row) == len(original) + 1
        for there, here in zip(original, row[1:], strict=True):
            assert there == here if there else here, f"{there!r} came back as {here!r}, in row {number}"


def observed_entries(read: Callable[..., pd.DataFrame]) -> Callable[[Path, Path], None]:
    """The same check for typed columns."""

    def check(made: Path, written: Path) -> None:
        before, after = read(made), read(written)
        assert list(after) == ["draw", *before]
        for _, table in after.groupby("draw"):
            for name in before:
                seen = before[name].notna().to_numpy()
                assert np.array_equal(table[name].to_numpy()[seen], before[name].to_numpy()[seen]), name
                assert not np.any(table[name].isna()), name

    return check


def same_rows(made: Path, written: Path) -> None:
    """The held-out rows are those of the file, with their labels and ids."""
    found = np.load(written)
    whole = np.load(made)
    arrays = {"x": whole} if isinstance(whole, np.ndarray) else dict(whole)
    if "x" in arrays:
        assert np.array_equal(found["x"], arrays["x"][found["rows"]])
    for theirs, ours in (("y", "labels"), ("ids", "ids")):
        if theirs in arrays:
            assert np.array_equal(found[ours], arrays[theirs][found["rows"]])


def named_rows(made: Path, written: Path) -> None:
    """The held-out rows have their names."""
    found = np.load(written)
    assert len(found["ids"]) == len(found["x"])
    if made.is_dir():
        assert all((made / name).exists() for name in found["ids"])
        assert [Path(name).parent.name for name in found["ids"]] == found["labels"].tolist()


TABLE = {"returns": observed_cells, "out": "filled.csv"}
GAPS = ("--missing", "nan")

WAYS = (
    Way(
        "CSV from a European spreadsheet",
        european,
        (*GAPS, "--columns", '"Patienten Nr"=index,Aufnahme=date'),
        "identifier",
        **TABLE,
    ),
    Way("Excel workbook", excel, GAPS, "missing entries", returns=observed_entries(pd.read_excel), out="filled.xlsx"),
    Way("Parquet", parquet, GAPS, "missing entries", returns=observed_entries(pd.read_parquet), out="filled.parquet"),
    Way("Parquet with nested types", nested, refused="lists or structures", trains=False),
    Way(
        "CSV with a pandas index and account numbers",
        with_index,
        (*GAPS, "--columns", "Konto=index"),
        "missing entries|identifier",
        **TABLE,
    ),
    Way(
        "CSV without a header",
        without_names,
        ("--header", "no", *GAPS),
        "may be names or data",
        returns=observed_cells,
        out="filled.csv",
    ),
    Way("gzipped survey with skips", survey, GAPS, "missing entries", returns=observed_cells, out="filled.tsv"),
    Way("Unicode text from Excel", utf16, GAPS, "missing entries", returns=observed_cells, out="filled.txt"),
    Way("fifteen rows", tiny, GAPS, **TABLE),
    Way("single-cell counts, .h5ad", cells, returns=named_rows),
    Way(".npz with labels and ids", named_arrays, returns=same_rows),
    Way(
        "counts, .npy of int64",
        saved("counts.npy", RNG.poisson(3, (60, 8))),
        ("--likelihood", "negative-binomial"),
        "counts or levels",
        returns=same_rows,
    ),
    Way(
        "spectra far from zero, float64",
        saved("spectra.npy", 1e6 + 1e-3 * RNG.normal(size=(60, 40))),
        returns=same_rows,
    ),
    Way("shares in [0, 1]", saved("shares.npy", RNG.beta(2, 5, (60, 6))), returns=same_rows),
    Way("bits", saved("bits.npy", RNG.random((60, 12)) < 0.3), returns=same_rows),
    Way(
        "big-endian, column-major array",
        saved("foreign.npy", np.asfortranarray(RNG.normal(size=(60, 5))).astype(">f8")),
        returns=same_rows,
    ),
    Way("SciPy sparse matrix", sparse),
    Way("photographs from a phone", phone, ("--resize", "24,18"), "size", returns=named_rows),
    Way(
        "scans in 16 bits",
        images("", "png", lambda n: (RNG.random((8, 8)) * 65535).astype(np.uint16)),
        returns=named_rows,
    ),
    Way(
        "satellite floats, TIFF",
        images("", "tif", lambda n: RNG.normal(300, 5, (8, 8)).astype(np.float32)),
        returns=named_rows,
    ),
    Way("images with transparency", images("RGBA", "png", cut_out), returns=named_rows),
    Way(
        "black-and-white drawings",
        images("1", "png", lambda n: (RNG.random((8, 8)) < 0.3).astype(np.uint8) * 255),
        returns=named_rows,
    ),
    Way("a multi-page TIFF", pages, refused="frames", trains=False),
)


@dataclass(frozen=True)
class Result:
    """The result for one way in."""

    way: Way
    command: str
    refused: str
    said: tuple[str, ...]
    out: str


def go_through(way: Way, folder: Path) -> Result:
    """Makes the data, trains, samples, and writes them out again.

    Raises:
        AssertionError: if a check fails.
    """
    made, trained = way.make(folder), folder / "run"
    refusal = ""
    if way.refused:
        status, _, err = run("train", "--data", str(made), *SHORT, "--out", str(trained))
        refusal = err.strip().removeprefix("error: ").replace(f"{folder}/", "")
        assert status == 2, f"expected a refusal, found status {status}: {err[-400:]}"
        assert re.search(way.refused, refusal), refusal
        assert len(err.strip().splitlines()) == 1, err
        assert not trained.exists()
    command = shlex.join(["pyro-vae", "train", "--data", str(made.relative_to(folder)), *way.options])
    if not way.trains:
        return Result(way, command, refusal, (), "")
    status, said, err = run("train", "--data", str(made), *way.options, *SHORT, "--out", str(trained))
    assert status == 0, f"train: {err[-2000:]}"
    notes = [line[12:] for line in said.splitlines() if line.startswith(("note  ", "likelihood  "))]
    is_table = not way.out.endswith(".npz")
    drawn = folder / f"drawn{Path(way.out).suffix if is_table else '.npy'}"
    status, _, err = run("sample", str(trained), "--num-samples", "9", "--out", str(drawn))
    assert status == 0, f"sample: {err[-2000:]}"
    written = folder / way.out
    use = "impute" if is_table else "predict"
    status, _, err = run(use, str(trained), "--num-samples", "2", "--out", str(written))
    assert status == 0, f"{use}: {err[-2000:]}"
    way.returns(made, written)
    return Result(way, command, refusal, tuple(notes), f"pyro-vae {use} --out {way.out}")


def page(results: list[Result]) -> str:
    """The results as a page."""
    lines = [
        "# Reading your data, and writing it back",
        "",
        "This page takes many kinds of data through `pyro-vae train`, `sample`, and `impute` or `predict`. It is",
        "written by `python scripts/ways_in.py`, which makes the data, trains for five epochs, and writes samples",
        "and results. The script fails if an observed entry, a label or an id comes back changed by a single",
        "character or, in arrays, a single bit.",
        "",
    ]
    for number, result in enumerate(results, start=1):
        lines += [f"## {number}. {result.way.title}", ""]
        if result.refused and result.way.trains:
            lines += ["Without the options the file is refused, and nothing is written:", "", f"> {result.refused}", ""]
        if not result.way.trains:
            lines += [f"`{result.command}` is refused:", "", f"> {result.refused}", ""]
            continue
        lines += [f"`{result.command}`, then `{result.out}`. Notes:", "", *(f"- {said}" for said in result.said), ""]
    return "\n".join(lines)


def main(
    out: Annotated[Path | None, typer.Option(help="The page to write. [default: docs/ways-in.md]")] = None,
    only: Annotated[str, typer.Option(help="Only those whose title contains these words.")] = "",
) -> None:
    """Runs the commands on data of many kinds, and writes a page with the results."""
    chosen = [way for way in WAYS if only in way.title]
    results, failed = [], []
    for way in chosen:
        with tempfile.TemporaryDirectory() as folder:
            try:
                results.append(go_through(way, Path(folder)))
                print(f"✓ {way.title}")
            except AssertionError as error:
                failed.append(way.title)
                print(f"✗ {way.title}: {error}")
    print(f"{len(results)} of {len(chosen)} ways in work")
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}")
    if not only:
        (out or PAGE).write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    run_command(main)
