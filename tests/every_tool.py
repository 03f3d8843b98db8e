"""Every tool on one pair, as little of each as shows that it runs: ``TOOLS[name](pair, data)`` returns what it gave."""

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pyro
import torch
from zoo.program import first

from pyro_vae import check_pair, evaluate, evaluation


def num_rows(data):
    return len(rows_of(data))


def rows_of(data):
    return data["x"] if isinstance(data, Mapping) else data


def some(data, num):
    return first(data, num) if isinstance(data, Mapping) else data[:num]


def given(data):
    """What goes with the rows, for tools that draw their x."""
    return {name: value for name, value in data.items() if name not in ("x", "mask")} if is_mapping(data) else {}


def is_mapping(data):
    return isinstance(data, Mapping)


def saved(pair, data):
    with tempfile.TemporaryDirectory() as folder:
        pair.save(Path(folder) / "saved")
        return sorted(path.name for path in (Path(folder) / "saved").iterdir())


def of_entries(pair, data):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the pair was built for complete rows")
        return evaluation.predictive_coverage(pair, data, num_samples=9, num_particles=5)


TOOLS = {
    "check_pair": lambda pair, data: str(check_pair(pair, data)),
    "evaluate": evaluate,
    "encode": lambda pair, data: pair.encode(data).mean,
    "sample": lambda pair, data: pair.sample(num_rows(data), given=given(data)),
    "posterior_predictive": lambda pair, data: pair.posterior_predictive(data, 3),
    "reconstruct": lambda pair, data: pair.reconstruct(data),
    "log_evidence": lambda pair, data: evaluation.log_evidence(pair, some(data, 8), num_particles=50),
    "ais_bounds": lambda pair, data: evaluation.ais_bounds(
        pair, some(data, 4), num_chains=2, num_steps=2, num_leapfrog=1
    ),
    "ais_bounds of simulated rows": lambda pair, data: evaluation.ais_bounds(
        pair, num_rows=4, given=given(some(data, 4)), num_chains=2, num_steps=2, num_leapfrog=1
    ),
    "refine": lambda pair, data: evaluate(*refined(pair, some(data, 8))),
    "gaps": lambda pair, data: evaluation.gaps(pair, some(data, 8), torch.zeros(8), steps=4, num_particles=20),
    "simulation_based_calibration": lambda pair, data: evaluation.simulation_based_calibration(
        pair, num_rows(data), 9, given=given(data)
    ),
    "predictive_coverage": lambda pair, data: of_entries(pair, data),
    "predictive_coverage of the prior": lambda pair, data: evaluation.predictive_coverage(
        pair, data, kind="prior", num_samples=9
    ),
    "predictive_check": lambda pair, data: evaluation.predictive_check(pair, data, num_replications=5),
    "diagnose_guide": lambda pair, data: evaluation.diagnose_guide(pair, some(data, 8), 50),
    "to_inference_data": lambda pair, data: evaluation.to_inference_data(pair, some(data, 8), num_samples=3),
    "nuts_posterior": lambda pair, data: evaluation.nuts_posterior(pair, some(data, 1), 5, 5, 2, max_tree_depth=2),
    "impute": lambda pair, data: pair.impute(data, 2, num_particles=5),
    "save": saved,
}


def seeded(tool, build, data, device):
    """The numbers of a tool, given a pair and rows that are made from one seed, on a device."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair, rows = build(), data()
    pair.to(device).eval()
    pyro.set_rng_seed(1)
    return numbers(tool(pair, rows))


def refined(pair, data):
    found = evaluation.refine(pair, data, steps=4)
    return found, found.rows()


def numbers(result):
    """All numbers of a result, in float64 on the CPU, in the order in which they stand there."""
    if isinstance(result, torch.Tensor):
        return [result.detach().cpu().double()]
    if isinstance(result, int | float | np.ndarray | np.number):
        return [torch.as_tensor(np.array(result)).double()] if np.asarray(result).dtype.kind in "biuf" else []
    if isinstance(result, Mapping):
        return [number for value in result.values() for number in numbers(value)]
    if isinstance(result, list | tuple):
        return [number for value in result for number in numbers(value)]
    if is_dataclass(result):
        return [number for field in fields(result) for number in numbers(getattr(result, field.name))]
    return []
