"""Draws and means of x by Pyro alone, as :mod:`zoo.reference` computes densities."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from zoo.program import Data
from zoo.reference import evaluation_mode, is_discrete, sites_of, taken, trace, unscaled

__all__ = [
    "assignments",
    "at_the_middle",
    "drawn",
    "forward_draws",
    "mean_ranks",
    "middle",
    "own_rows",
    "posterior_draws",
    "rows_first",
]


def rows_first(value: Tensor, num: int) -> Tensor:
    """A value of a site, ``(*plates, N, *E)``, as ``(N, ...)``, where there is one plate more at most."""
    return value if len(value) == num else value.movedim(1, 0)


def forward_draws(model: Any, num: int, given: Mapping[str, Any]) -> Any:
    """A trace of the model run forward for ``num`` rows."""
    with evaluation_mode(model):
        return trace(model, batch_size=num, **taken(model, given))


def own_rows(model: Any, data: Data, observed: Sequence[str] = ()) -> Data:
    """The data with x drawn by the model itself, given the other keyword arguments."""
    given = {name: value for name, value in data.items() if name not in (*observed, "x", "mask")}
    x = forward_draws(model, len(data["x"]), given).nodes["x"]["value"]
    return {**data, "x": rows_first(x, len(data["x"]))}


def assignments(model: Any, latents: Mapping[str, Tensor], data: Data) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Every combination of values of the latents that the model alone sums out, given all others.

    Within a row's plates, such as the words of a document, elements must be independent given the other latents: each
    combination has one value for all of them.

    Returns:
        The values by site for each combination, and their log joint density, ``(combinations, *plates, N)``.
    """
    kwargs = taken(model, data)
    with evaluation_mode(model):
        start = trace(poutine.condition(model, data=dict(latents)), data["x"], **kwargs)
        summed = [n for n, s in start.nodes.items() if s["type"] == "sample" and not s["is_observed"]]
        summed = [n for n in summed if start.nodes[n]["infer"].get("enumerate") == "parallel" and n not in latents]
        supports = [start.nodes[name]["fn"].enumerate_support(expand=False).flatten() for name in summed]
        found, log_joint = [], []
        for combination in itertools.product(*supports):
            pairs = zip(summed, combination, strict=True)
            values = {name: value.expand(start.nodes[name]["value"].shape) for name, value in pairs}
            traced = trace(poutine.condition(unscaled(model), data={**latents, **values}), data["x"], **kwargs)
            traced.compute_log_prob()
            counted = [n for n, s in traced.nodes.items() if s["type"] == "sample" and s["is_observed"]]
            parts = [traced.nodes[n]["log_prob"].double() for n in counted if n not in latents]
            if len({part.shape for part in parts}) > 1:
                raise NotImplementedError("the sites of a row that a latent joins are in different plates")
            found.append(values)
            log_joint.append(sum(parts, torch.zeros(())))
    return found, torch.stack(log_joint)


def _chosen(found: list[dict[str, Tensor]], index: Tensor) -> dict[str, Tensor]:
    """For each element the values of the combination with its index."""
    stacked = {name: torch.stack([values[name] for values in found]) for name in found[0]}
    return {name: value.gather(0, index[None])[0] for name, value in stacked.items()}


class _Middle(Messenger):
    """Every draw is the mean of its distribution, if need be that of 256 draws, or its most probable value."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        fn = msg["fn"]
        if is_discrete(fn):
            fn = fn.base_dist if isinstance(fn, dist.Independent) else fn
            values = fn.enumerate_support()
            msg["value"] = values.gather(0, fn.log_prob(values).argmax(0, keepdim=True))[0]
        else:
            try:
                msg["value"] = fn.mean
            except NotImplementedError:  # of a flow
                msg["value"] = fn((256,)).mean(0)
        msg["done"] = True


def at_the_middle(guide: Any, data: Data) -> Any:
    """A trace of the guide with every draw at its middle."""
    with evaluation_mode(guide):
        return trace(_Middle()(guide), data["x"], **taken(guide, data))


def drawn(guide: Any, data: Data) -> Any:
    """A trace of the guide."""
    with evaluation_mode(guide):
        return trace(guide, data["x"], **taken(guide, data))


def _latents(model: Any, guide: Any, data: Data, names: Sequence[str], *, centre: bool) -> dict[str, Tensor]:
    """Values of all latents, by the guide and, of those that the model sums out, by their posterior."""
    traced = at_the_middle(guide, data) if centre else drawn(guide, data)
    guided = {name: site["value"] for name, site in traced.nodes.items() if name in names}
    if all(name in guided for name in names):
        return guided
    found, log_joint = assignments(model, guided, data)
    index = log_joint.argmax(0) if centre else torch.distributions.Categorical(logits=log_joint.movedim(0, -1)).sample()
    return {**guided, **_chosen(found, index)}


def _forward(model: Any, latents: Mapping[str, Tensor], data: Data, given: Mapping[str, Any]) -> Any:
    program = poutine.condition(model, data=dict(latents))
    return forward_draws(program, len(data["x"]), taken(model, given)).nodes["x"]


def middle(model: Any, guide: Any, data: Data, given: Mapping[str, Any]) -> Tensor:
    """The mean of x with every latent at its middle, ``(N, *E)``."""
    latents = _latents(model, guide, data, sites_of(model, guide, data).latent, centre=True)
    with evaluation_mode(model):
        site = _forward(model, latents, data, given)
    return rows_first(site["fn"].mean, len(data["x"]))


def posterior_draws(model: Any, guide: Any, data: Data, given: Mapping[str, Any], num: int) -> Tensor:
    """Draws of x like each row, ``(num, N, *E)``."""
    names, draws = sites_of(model, guide, data).latent, []
    for _ in range(num):
        latents = _latents(model, guide, data, names, centre=False)
        with evaluation_mode(model):
            draws.append(rows_first(_forward(model, latents, data, given)["value"], len(data["x"])))
    return torch.stack(draws)


def mean_ranks(
    model: Any, guide: Any, data: Data, observed: Mapping[str, str], num_draws: int
) -> dict[str, tuple[float, float]]:
    """The mean rank, from 0 to 1, of each latent of simulated rows among draws from the guide, with its standard error.

    Args:
        model: The model.
        guide: The guide.
        data: For the keyword arguments, and the number of rows to simulate.
        observed: The model's other observed sites, with the keyword argument that holds each.
        num_draws: Draws of the guide for each row.
    """
    num = len(data["x"])
    given = {name: value for name, value in data.items() if name not in ("x", "mask", *observed.values())}
    truth = forward_draws(model, num, given)
    simulated = {argument: truth.nodes[site]["value"] for site, argument in observed.items()}
    masks = {f"{name}_mask": torch.ones_like(value, dtype=torch.bool) for name, value in simulated.items()}
    rows = {**given, **simulated, **masks, "x": rows_first(truth.nodes["x"]["value"], num)}
    names, below = sites_of(model, guide, rows).latent, {}
    for _ in range(num_draws):
        for name, drawn in _latents(model, guide, rows, names, centre=False).items():
            value, true = drawn.double(), truth.nodes[name]["value"].double()
            part = (value < true).double() + 0.5 * (value == true)
            below[name] = below.get(name, torch.zeros_like(part)) + part
    found = {}
    for name, count in below.items():
        position = ((count + 0.5) / (num_draws + 1)).reshape(num, -1)
        for i, column in enumerate(position.unbind(-1)):
            found[f"{name}[{i}]"] = (float(column.mean()), float(column.std() / num**0.5))
    return found
