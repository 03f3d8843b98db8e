"""Runs every tool of the library on one program of the zoo, and checks it by a second computation.

Each function here runs one tool and returns what agreed, in a few words. It raises the tool's errors, and
:class:`~zoo.checks.Disagreement` if the numbers differ.
"""

import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import Pair, evaluation, fit, load
from zoo import predictions, reference
from zoo.checks import Disagreement, agree, below, equal, error_of, same_draws
from zoo.program import Data, Program, Programs, first, without_nan

__all__ = ["TOOLS", "Trial"]

_SETTINGS: Mapping[str, Any] = {"batch_size": 64, "learning_rate": 0.02, "progress": False, "seed": 0}


@dataclass
class Trial:
    """A program to run tools on, in the order of :data:`TOOLS`: the first of them trains it a little.

    Args:
        program: The entry.
        epochs: Epochs of training.
        programs: The two programs.
        pair: The pair of these.
        data: All rows, as a user passes them.
        prepared: The rows as the programs take them, with NaN replaced and a mask.
        sites: The programs' sites.
        numbers: Numbers for the table of numbers.
        execution: How the compiled training was run.
    """

    program: Program
    epochs: int = 20
    programs: Programs = field(init=False)
    pair: Pair = field(init=False)
    data: Data = field(init=False)
    prepared: Data = field(init=False)
    sites: reference.Sites = field(init=False)
    numbers: dict[str, float] = field(default_factory=dict)
    execution: str = ""

    def __post_init__(self) -> None:
        self.data = self.program.rows()
        self.prepared = self.as_programs_take(self.data)
        self.restart()
        self.sites = reference.sites_of(self.model, self.guide, self.prepared)

    def restart(self) -> None:
        """Resets the parameters."""
        self.programs = self.program.build()
        self.pair = Pair(self.model, self.guide, **self.program.pair)

    @property
    def model(self) -> Any:
        """The generative program."""
        return self.programs.model

    @property
    def guide(self) -> Any:
        """The inference program."""
        return self.programs.guide

    def as_programs_take(self, data: Data) -> Data:
        """Rows in floating point, with NaN replaced and a mask where NaN means a missing entry."""
        x = data["x"].to(torch.get_default_dtype())
        return without_nan({**data, "x": x}) if self.program.pair.get("missing") == "nan" else {**data, "x": x}

    def given(self, data: Data, num: int) -> dict[str, Any]:
        """Keyword arguments of a run without data: those without observations, for ``num`` rows."""
        index = torch.arange(num) % len(data["x"])
        return {
            name: value[index] if isinstance(value, Tensor) and value.dim() else value
            for name, value in data.items()
            if name not in ("x", "mask", *self.program.observed)
        }

    def evidence(self, data: Data) -> Tensor | None:
        """The exact log evidence of rows as a user passes them."""
        if self.programs.log_evidence is None:
            return None
        with torch.no_grad():
            return self.programs.log_evidence(data)

    def elbo(self, data: Data | None = None, num: int = 20) -> Tensor:
        """Estimates of the ELBO per row by Pyro's own objective."""
        return reference.elbo_draws(self.model, self.guide, self.prepared if data is None else data, num)


class _Recorder(torch.optim.Optimizer):
    """Takes no steps and stores the gradients."""

    def __init__(self, parameters: Any, lr: Any) -> None:
        super().__init__(parameters, {"lr": lr})
        self.parameters = self.param_groups[0]["params"]
        self.kept: list[Tensor] = []

    def step(self, closure: Any = None) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters]
        self.kept.append(torch.cat([grad.reshape(-1) for grad in grads]))


def fit_programs(trial: Trial) -> str:
    """Training step by step: the gradient is that of Pyro's own objective, and the ELBO rises."""
    text = _gradient(trial)
    trial.restart()
    before = trial.elbo()
    settings = {**_SETTINGS, "epochs": trial.epochs, "compile": False, **trial.program.fit}
    history = fit(trial.pair, trial.data, **settings)
    after = trial.elbo()
    if not all(math.isfinite(value) for value in history["elbo"]):
        raise Disagreement(f"the history has ELBOs {history['elbo'].tolist()}")
    if not float(after.mean()) > float(before.mean()):
        raise Disagreement(f"ELBO {float(before.mean()):.3f} before training and {float(after.mean()):.3f} after")
    trial.numbers |= {"before": float(before.mean()), "pyro": float(after.mean())}
    return text


def _gradient(trial: Trial, num: int = 60) -> str:
    """The mean gradient of steps on all rows, and that of Pyro's objective at the same parameters."""
    recorders: list[_Recorder] = []

    def optimizer(parameters: Any, lr: Any) -> _Recorder:
        recorders.append(_Recorder(parameters, lr))
        return recorders[-1]

    rows = len(trial.data["x"])
    fit(trial.pair, trial.data, optimizer=optimizer, epochs=num, batch_size=rows, compile=False, progress=False)
    scale = reference.plate_scale(trial.model, trial.prepared)
    pyros = reference.gradients(trial.model, trial.guide, trial.prepared, recorders[0].parameters, num) / scale
    # Programs that count their steps, such as those with annealing, have finished that in the second half.
    found, expected = (kept.double()[num // 2 :] for kept in (torch.stack(recorders[0].kept), pyros))
    error = (found.var(0) / len(found) + expected.var(0) / len(expected)).sqrt()
    size = float(expected.mean(0).norm()) / math.sqrt(expected.shape[1])
    return agree("gradient", found.mean(0), expected.mean(0), error + 1e-3 * size, limit=7.0)


def fit_compiled(trial: Trial) -> str:
    """Training by a compiled graph and by the programs: the same ELBO in each epoch, the same weights at the end."""
    # Without Adam, whose division by the size of gradients turns rounding errors into steps.
    optimizer = functools.partial(torch.optim.Adam, eps=1e-3)
    runs = []
    for compile in (False, True):
        trial.restart()
        settings = {**_SETTINGS, "optimizer": optimizer, "epochs": 3, "compile": compile, **trial.program.fit}
        history = fit(trial.pair, trial.data, **settings)
        runs.append((torch.tensor(history["elbo"].to_numpy()), _weights(trial), history.attrs["execution"]))
    (elbo, weights, _), (compiled_elbo, compiled_weights, trial.execution) = runs
    text = equal("ELBO of each epoch", compiled_elbo, elbo)
    trial.numbers["compiled"] = float((compiled_elbo - elbo).abs().max())
    for name, value in weights.items():
        equal(f"weights {name}", compiled_weights[name], value, tolerance=1e-3)
    return f"{text}, and the weights"


def _weights(trial: Trial) -> dict[str, Tensor]:
    """All learned tensors, by name."""
    store = pyro.get_param_store()
    loose = {name: store[name] for name in list(store) if not isinstance(store[name], torch.nn.Parameter)}
    named = {**trial.pair.state_dict(), **loose}
    return {name: value.detach().clone() for name, value in named.items()}


def sample(trial: Trial) -> str:
    """New rows: their mean and spread match the model run forward by Pyro, and the exact ones."""
    num = 2000
    given = trial.given(trial.data, num)
    found = trial.pair.sample(num, given=given)
    if not trial.sites.shared:
        expected = predictions.forward_draws(trial.model, num, given).nodes["x"]["value"]
        text = same_draws("x", found, predictions.rows_first(expected, num))
        if trial.programs.moments is not None:
            with torch.no_grad():
                mean, sd = trial.programs.moments(trial.prepared)
            text = agree("exact mean of x", found.double().mean(0), mean, sd / math.sqrt(num))
            agree("exact spread of x", found.double().std(0), sd, sd * 4 / math.sqrt(num))
        return text
    runs = torch.stack([_learned(trial, 200) for _ in range(60)])  # shared latents differ in each
    within = runs.var(1).mean(0)
    between = (runs.mean(1).var(0) - within / 200).clamp_min(0)
    return same_draws("x", found, runs.flatten(0, 1), between)


def _learned(trial: Trial, num: int) -> Tensor:
    """Rows with shared latents from the guide."""
    with reference.evaluation_mode(trial.model, trial.guide):
        traced = reference.trace(trial.guide, trial.prepared["x"], **reference.taken(trial.guide, trial.prepared))
    shared = {name: traced.nodes[name]["value"] for name in trial.sites.shared}
    given = reference.taken(trial.model, trial.given(trial.data, num))
    program = poutine.condition(trial.model, data=shared)
    with reference.evaluation_mode(trial.model):
        return reference.trace(program, batch_size=num, **given).nodes["x"]["value"]


def posterior_predictive(trial: Trial) -> str:
    """Data like each row: the mean of each entry matches draws by Pyro."""
    rows = first(trial.data, 12)
    given, prepared = trial.given(rows, 12), trial.as_programs_take(rows)
    found = trial.pair.posterior_predictive(rows, 200)
    num = 40 if len(trial.sites.enumerated) > 1 else 120  # each enumerates every combination of values
    expected = predictions.posterior_draws(trial.model, trial.guide, prepared, given, num)
    return same_draws("x given each row", found, expected)


def reconstruct(trial: Trial) -> str:
    """The mean of x at the centre of every latent."""
    rows = first(trial.data, 40)
    found = trial.pair.reconstruct(rows)
    prepared, given = trial.as_programs_take(rows), trial.given(rows, 40)
    # Latents with an unknown mean are at that of some draws, and differ between calls.
    several = torch.stack([predictions.middle(trial.model, trial.guide, prepared, given) for _ in range(8)]).double()
    if bool((several[0] == several).all()):
        return equal("mean of x", found, several[0])
    return agree("mean of x", found, several.mean(0), several.std(0) * math.sqrt(1 + 1 / 8) + 1e-3, limit=8.0)


def encode(trial: Trial) -> str:
    """The posterior of each latent of a row: the guide's, or the exact one of a latent that the model sums out."""
    rows, texts = first(trial.data, 20), []
    prepared = trial.as_programs_take(rows)
    local = [name for name in trial.sites.latent if name not in trial.sites.shared]
    exact: Mapping[str, Any] = {}
    if trial.programs.posterior is not None:
        with torch.no_grad():
            exact = trial.programs.posterior(prepared)
    for name in local or trial.sites.latent[:1]:
        found = trial.pair.encode(rows, site=name)
        site = predictions.at_the_middle(trial.guide, prepared).nodes.get(name)
        if site is not None:
            value = site["value"]
            if isinstance(site["fn"], dist.Delta) and name not in trial.sites.point:
                draws = torch.stack([predictions.drawn(trial.guide, prepared).nodes[name]["value"] for _ in range(400)])
                texts.append(same_draws(name, found.sample(torch.Size((400,))), draws))
                continue
            texts.append(equal(name, found.log_prob(value), site["fn"].log_prob(value)))
        elif name in exact:
            mean = found.probs @ torch.arange(found.probs.shape[-1]).to(found.probs.dtype)
            texts.append(equal(name, mean, exact[name][0]))
        else:
            texts.append(_summed_out(trial, name, found, prepared))
    return ", ".join(texts)


def _summed_out(trial: Trial, name: str, found: Any, prepared: Data) -> str:
    """The posterior of a latent that the model sums out, averaged over draws of the others."""
    parts, num = [], 1000  # some values come from few draws
    for _ in range(num):
        with reference.evaluation_mode(trial.model, trial.guide):
            traced = reference.trace(trial.guide, prepared["x"], **reference.taken(trial.guide, prepared))
        drawn = {n: s["value"] for n, s in traced.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
        values, log_joint = predictions.assignments(trial.model, drawn, prepared)
        stacked = torch.stack([value[name] for value in values]).double()
        parts.append((log_joint.softmax(0) * stacked).sum(0))
        if not drawn:
            break
    expected = torch.stack(parts)
    mean = found.probs.double() @ torch.arange(found.probs.shape[-1]).double()
    if len(parts) == 1:
        return equal(name, mean, expected[0])
    return agree(name, mean, expected.mean(0), expected.std(0) * math.sqrt(1 / num + 1 / 256) + 1e-3)


def evaluate_(trial: Trial) -> str:
    """The ELBO of all rows: Pyro's own objective at unit scale, and at most the exact evidence."""
    found = torch.tensor([evaluation.evaluate(trial.pair, trial.data, seed=seed)["elbo"] for seed in range(12)])
    expected = trial.elbo(num=40)
    error = math.hypot(error_of(found), error_of(expected))
    text = agree("ELBO", found.mean(), expected.mean(), error)
    trial.numbers |= {"elbo": float(found.mean()), "pyro": float(expected.mean())}
    evidence = trial.evidence(trial.data)
    if evidence is not None:
        trial.numbers["exact"] = float(evidence.mean())
    if evidence is not None and not trial.sites.point:  # at a point it is the joint density, not a bound
        text += "; " + below("ELBO", float(found.mean()), float(evidence.mean()), error_of(found))
    metrics = evaluation.evaluate(trial.pair, trial.data)
    equal("elbo = -distortion - rate", metrics["elbo"], -metrics["distortion"] - metrics["rate"])
    return text


def evidence(trial: Trial) -> str:
    """The log evidence of each row by weighted draws, compared with the exact one or that from Pyro's draws."""
    rows = first(trial.data, 30)
    found = evaluation.log_evidence(trial.pair, rows, num_particles=300)
    exact = trial.evidence(rows)
    if exact is None:
        exact = torch.tensor(
            [
                reference.importance(trial.model, trial.guide, trial.as_programs_take(rows), row, 20_000).log_evidence
                for row in range(30)
            ]
        )
    trial.numbers["weighted"] = float((found.log_evidence - exact).mean())
    believed = found.standard_error < 0.2  # larger errors are unreliable
    if not bool(believed.any()):
        return below("evidence", float(found.log_evidence.mean()), float(exact.mean()), 0.1)
    text = agree("evidence", found.log_evidence[believed], exact[believed], found.standard_error[believed] + 1e-3, 7.0)
    return f"{text} on {int(believed.sum())} of 30 rows"


def annealing(trial: Trial) -> str:
    """Bounds on the log evidence by annealing: they bracket the exact one."""
    rows = first(trial.data, 8)
    found = evaluation.ais_bounds(trial.pair, rows, num_chains=8, num_steps=40, num_leapfrog=3)
    exact = trial.evidence(rows)
    if exact is None:
        exact = torch.tensor(
            [
                reference.importance(trial.model, trial.guide, trial.as_programs_take(rows), row, 20_000).log_evidence
                for row in range(8)
            ]
        )
    error = float(found.standard_error.square().sum().sqrt()) / 8
    trial.numbers["annealed"] = float((found.lower - exact).mean())
    text = agree("lower bound", found.lower.mean(), exact.mean(), error + 0.02)
    given = {name: value for name, value in first(trial.data, 16).items() if name not in ("x", "mask")}
    both = evaluation.ais_bounds(trial.pair, num_rows=16, given=given, num_chains=8, num_steps=40, num_leapfrog=3)
    assert both.upper is not None
    below("lower and upper bound", float(both.lower.mean()), float(both.upper.mean()), 0.05)
    if trial.programs.log_evidence is not None and set(trial.data) == {"x"}:
        assert both.x is not None
        exact = trial.evidence({"x": both.x})
        assert exact is not None
        below("lower bound", float(both.lower.mean()), float(exact.mean()), 0.03)
        below("exact and upper bound", float(exact.mean()), float(both.upper.mean()), 0.03)
    return text


def refinement(trial: Trial) -> str:
    """The guide refined for each row: its ELBO is not lower than before, and not above the evidence."""
    rows = first(trial.data, 24)
    refined = evaluation.refine(trial.pair, rows, steps=100)
    before, better = (
        torch.tensor([evaluation.evaluate(pair, its_rows, seed=seed)["elbo"] for seed in range(10)])
        for pair, its_rows in ((trial.pair, rows), (refined, refined.rows()))
    )
    error = math.hypot(error_of(better), error_of(before))
    text = below("ELBO before and after", float(before.mean()), float(better.mean()), error)
    exact = trial.evidence(rows)
    if exact is not None:
        text += "; " + below("refined ELBO", float(better.mean()), float(exact.mean()), error_of(better))
    return text


def calibration(trial: Trial) -> str:
    """Ranks of the latents of simulated rows among draws from the guide: their mean matches ranks by Pyro."""
    num = len(trial.data["x"])
    given = {name: value for name, value in trial.data.items() if name not in ("x", "mask")}
    found = evaluation.simulation_based_calibration(trial.pair, num, 39, given=given)
    arguments = {"labels": "label"}
    names = [name for name in trial.program.observed if not name.endswith("_mask")]
    observed = {arguments.get(name, name): name for name in names}
    expected = predictions.mean_ranks(trial.model, trial.guide, {**given, "x": trial.prepared["x"]}, observed, 39)
    texts = []
    for name, ranks in found.ranks.items():
        position = (torch.as_tensor(ranks).double() + 0.5) / 40
        for key in (name, f"{name}[0]"):
            if key in expected:
                mean, error = expected[key]
                texts.append(agree(name, position.mean(), mean, math.hypot(error, error_of(position))))
    if trial.program.name == "exact posterior" and found.p_value < 1e-3:
        raise Disagreement(f"an exact guide is found wanting, p = {found.p_value:.2g}")
    if not texts:
        raise Disagreement(f"none of the quantities {', '.join(found.ranks)} is a latent")
    return f"mean ranks of {len(texts)} latents"


def nuts(trial: Trial) -> str:
    """Draws from the posterior: their mean matches the exact one, or that of weighted draws."""
    rows = trial.data if trial.sites.shared else first(trial.data, 1)
    if "lengths" in trial.data:  # a complete one, in which every step has its own posterior
        longest = int(trial.data["lengths"].argmax())
        rows = {name: value[longest : longest + 1] for name, value in trial.data.items()}
    if len(trial.sites.latent) > len(trial.sites.shared) > 0:
        rows = first(trial.data, 40)
    found = evaluation.nuts_posterior(trial.pair, rows, 150, 100, 2, max_tree_depth=5)
    prepared = trial.as_programs_take(rows)
    means: dict[str, tuple[Tensor, Tensor]] = {}
    if trial.programs.posterior is not None:
        with torch.no_grad():
            means = {name: (mean, sd) for name, (mean, sd) in trial.programs.posterior(prepared).items()}
    elif not trial.sites.shared and not trial.sites.point:  # a point's draws cannot be weighted
        weighed = reference.importance(trial.model, trial.guide, prepared, 0, 40_000)
        means = {name: (weighed.mean[name][None], weighed.sd[name][None]) for name in weighed.mean}
    texts = []
    for name, draws in found.draws.items():
        if name in means:
            mean, sd = means[name]
            size = found.effective_sample_size[name].double().clamp(4, 500)
            texts.append(agree(name, draws.double().mean((0, 1)), mean, sd / size.sqrt() + 0.02 * sd))
        elif not bool(draws.isfinite().all()):
            raise Disagreement(f"draws of {name} are not finite")
    return ", ".join(texts)


def impute(trial: Trial) -> str:
    """Missing entries given the observed ones: their mean matches the exact one."""
    rows, (site, mask) = first(trial.data, 30), trial.program.gaps
    seen = trial.as_programs_take(rows).get(mask)
    if seen is None:
        rows[mask] = seen = torch.arange(rows[site].numel()).reshape(rows[site].shape) % 3 > 0
    found = trial.pair.impute(rows, 200, num_particles=300, sites=(site,))[site]
    equal("observed entries", found[:, seen], rows[site][seen].expand(200, -1))
    if trial.programs.imputed is None:
        return ""
    with torch.no_grad():
        exact = trial.programs.imputed(rows)[site]
    draws = found[:, ~seen].double()
    return agree("imputed mean", draws.mean(0), exact[~seen], draws.std(0) * math.sqrt(1 / 200 + 1 / 100))


def save_and_open(trial: Trial) -> str:
    """Saving, and opening into fresh programs: the same parameters and numbers."""
    weights, expected = _weights(trial), evaluation.evaluate(trial.pair, first(trial.data, 100), seed=3)
    with tempfile.TemporaryDirectory() as folder:
        trial.pair.save(folder)  # pyright: ignore[reportCallIssue]
        programs = trial.program.build(seed=1)
        other = load(folder, into=Pair(programs.model, programs.guide, **trial.program.pair))
        trial.programs, trial.pair = programs, other
    found = evaluation.evaluate(other, first(trial.data, 100), seed=3)
    equal("ELBO", found["elbo"], expected["elbo"], tolerance=1e-6)
    for name, value in _weights(trial).items():
        equal(f"weights {name}", value, weights[name], tolerance=1e-7)
    return "equal weights and ELBO"


TOOLS: dict[str, Callable[[Trial], str]] = {
    "fit compiled": fit_compiled,
    "fit as programs": fit_programs,
    "sample": sample,
    "posterior predictive": posterior_predictive,
    "reconstruct": reconstruct,
    "encode": encode,
    "evaluate": evaluate_,
    "evidence": evidence,
    "annealing": annealing,
    "refinement": refinement,
    "calibration": calibration,
    "NUTS": nuts,
    "impute": impute,
    "save and open": save_and_open,
}
