"""Single cells: counts come back from log-normalised values, and models are compared cell by cell."""

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from datasets import save_h5ad

from pyro_vae.results import cells
from pyro_vae.results.counts import compared


def write_cells(tmp_path, *, noise=0.0, raw=True):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (40, 6)) * (rng.random((40, 6)) < 0.5)
    counts[:, 0] = 1 + counts[:, 0] * 2
    counts[rng.permutation(40)[:30], 1] = 1
    counts[np.arange(40), rng.integers(1, 6, 40)] = 1  # the smallest count of each cell is 1
    values = np.log1p(counts * rng.uniform(0.1, 9, (40, 1)) * (1 + noise * rng.standard_normal(counts.shape)))
    save_h5ad(tmp_path / "cells.h5ad", values.astype(np.float32), raw=raw, names=[f"C{i}-{i % 2}" for i in range(40)])
    return counts


def test_counts_totals_and_batches_are_recovered(tmp_path):
    counts = write_cells(tmp_path)
    rows = cells.read_cells(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(rows["x"].numpy(), counts)
    totals = torch.as_tensor(counts.sum(1))
    torch.testing.assert_close(rows["size_factor"] * totals.median(), totals.float())
    assert rows["groups"].tolist() == [i % 2 for i in range(40)]


NO_COUNTS = {"noise": ({"noise": 0.3}, "not multiples of their minimum"), "raw": ({"raw": False}, "no raw part")}


@pytest.mark.parametrize(("options", "message"), NO_COUNTS.values(), ids=NO_COUNTS)
def test_what_are_no_counts_is_refused(tmp_path, options, message):
    write_cells(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        cells.read_cells(tmp_path / "cells.h5ad")


def test_without_scanpy_the_sentence_says_where_cells_come_from(tmp_path, monkeypatch):
    def not_installed(_):
        raise PackageNotFoundError

    monkeypatch.setattr(cells, "distribution", not_installed)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[cells\]', or put its .*h5ad into"):
        cells.cells_file(tmp_path)
    (tmp_path / cells.FILE).touch()
    assert cells.cells_file(tmp_path) == tmp_path / cells.FILE


def test_differences_are_paired():
    first, second = torch.randn(2, 3, 50, dtype=torch.float64)
    found = {"Poisson": first.flatten().split(50), "other": second.flatten().split(50)}
    one, other = compared(found, {"Poisson": [50.0], "other": [30.0, 50.0]})
    assert "to the Poisson" not in one
    difference = (second - first).flatten().numpy()
    assert other["to the Poisson"]["value"] == pytest.approx(difference.mean())
    assert other["to the Poisson"]["error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(150))
    assert other["zeros, %"]["value"] == 40


@pytest.mark.parametrize("name", ["negative binomial", f"zero-inflated Poisson{cells.POOLED}"])
def test_cells_held_out_have_an_evidence(name):
    torch.manual_seed(0)
    rows = {
        "x": torch.poisson(torch.full((100, 5), 3.0)),
        "size_factor": torch.ones(100),
        "groups": torch.arange(100) % 3,
    }
    evidence, zeros = cells.held_out(rows, name, epochs=3, num_particles=50, seed=0)
    assert evidence.shape == (20,)
    best = torch.distributions.Poisson(3.0).log_prob(rows["x"]).sum(1).mean()  # of the rows' own distribution
    assert -60 < float(evidence.mean()) < float(best) + 1.5
    assert 0 < zeros < 0.9  # e⁻³ after long training, and much more at first
