"""The input of a report's parts: the pair, its rows, and how many of them to use."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.data.rows import Rows
from pyro_vae.evaluation.modes import Modes, find_modes
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SIZES", "Job", "Size"]


@dataclass(frozen=True)
class Size:
    """How much each part of a suite does; None is all rows."""

    evidence_rows: int | None
    particles: int
    guide_rows: int
    bounds: tuple[int, int, int]  # rows, chains, steps
    modes: tuple[int, int]  # rows, chains
    gaps: tuple[int, int]  # rows, steps of the refinement
    nuts: tuple[int, int]  # rows, draws of each chain
    simulations: tuple[int, int]  # rows drawn, draws from the guide for each
    at_rows: tuple[int, int]  # rows, transitions of each chain
    coverage_rows: int
    check_rows: int | None
    replications: int
    sample_rows: int | None
    train_rows: int | None
    classifier_rows: int | None


SIZES: dict[str, Size] = {
    "quick": Size(
        evidence_rows=200,
        particles=1000,
        guide_rows=200,
        bounds=(8, 4, 50),
        modes=(12, 16),
        gaps=(20, 200),
        nuts=(0, 0),
        simulations=(300, 99),
        at_rows=(100, 10),
        coverage_rows=300,
        check_rows=1000,
        replications=200,
        sample_rows=1000,
        train_rows=20_000,
        classifier_rows=5000,
    ),
    "full": Size(
        evidence_rows=None,
        particles=5000,
        guide_rows=1000,
        bounds=(100, 16, 1000),
        modes=(50, 32),
        gaps=(500, 500),
        nuts=(3, 1000),
        simulations=(2000, 199),
        at_rows=(500, 50),
        coverage_rows=2000,
        check_rows=None,
        replications=400,
        sample_rows=10_000,
        train_rows=None,
        classifier_rows=None,
    ),
}


@dataclass(frozen=True)
class Job:
    """The input of every part.

    Args:
        pair: The programs.
        rows: All rows, checked.
        structure: The sites of the programs.
        train: Rows that the pair was trained on, checked.
        labels: The labels of ``train``, for a classifier.
        history: A row for each epoch of the training.
        size: How much each part does.
        seed: Seeds every part.
    """

    pair: Pair
    rows: Rows
    structure: Structure
    train: Rows | None
    labels: Tensor | None
    history: "pd.DataFrame | None"
    size: Size
    seed: int

    def some(self, num_rows: int | None, rows: Rows | None = None) -> Mapping[str, Any]:
        """``num_rows`` rows, chosen by the seed: a mapping of ``"x"`` and the keyword arguments that go with them."""
        rows = rows or self.rows
        chosen = torch.arange(rows.num_rows)
        if num_rows is not None and num_rows < len(chosen):
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(len(chosen), generator=generator)[:num_rows].sort().values
        return next(iter(rows.batches([chosen])))

    @cached_property
    def modes(self) -> Modes:
        """What chains find that the guide misses; the section on the evidence uses it as well."""
        num_rows, num_chains = self.size.modes
        return find_modes(self.pair, self.some(num_rows), num_chains=num_chains, seed=self.seed)

    def given(self, num_rows: int) -> tuple[dict[str, Any], int]:
        """Keyword arguments to draw rows with, and the number of rows that they are for.

        Those of observed sites are omitted, because the model draws them.
        """
        names = self.some(1).keys() - {"x", *self.structure.observed.values()}
        if not names - self.rows.constants.keys():
            return {name: self.rows.constants[name] for name in names}, num_rows
        rows = self.some(num_rows)
        return {name: rows[name] for name in names}, len(rows["x"])
