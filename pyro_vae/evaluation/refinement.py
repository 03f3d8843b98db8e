r"""The best posterior of the guide's own family for each row, and the two gaps between ELBO and evidence.

A guide is amortised: one network serves all rows. Here each parameter :math:`\phi` of the distributions at its sites is
set free for each row n, by a shift in the space where it is unconstrained,

.. math:: \phi_n = T\left(T^{-1}(\phi(x_n, \ldots)) + \delta_n\right)

with T from ``transform_to(arg_constraints[…])``, and :math:`\delta_n` maximises that row's own ELBO. The guide's
program runs on as it is, so whatever it makes of x, of keyword arguments or of its own earlier draws stays in place.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, transform_to

from pyro_vae.inference.objectives import elbo_terms
from pyro_vae.inference.structure import log_weights, row_programs, unscaled
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["Gaps", "RefinedPair", "gaps", "refine"]

_ROW = "refined_row"  # the keyword argument by which the refined guide knows its rows

Change = Callable[[str, Tensor, Any], Tensor]


def _changed(fn: Any, change: Change, path: str = "") -> Any:
    """The same distribution with ``change(path, value, constraint)`` for each parameter of those it is made of."""
    free = _free_names(fn)
    if free:
        arguments = {name: getattr(fn, name) for name in _constructor(fn) if hasattr(fn, name)}
        alternatives = {name for name in fn.arg_constraints if name in arguments} - set(free)
        arguments = {k: v for k, v in arguments.items() if k not in alternatives or _whole(fn.arg_constraints[k])}
        for name, constraint in free.items():
            arguments[name] = change(f"{path}{name}", arguments[name], constraint)
        return type(fn)(**arguments, validate_args=False)
    new = copy.copy(fn)  # a wrapper: Independent, expanded, masked, transformed, a mixture
    for name, part in vars(fn).items():
        if isinstance(part, Distribution):
            setattr(new, name, _changed(part, change, f"{path}{name}."))
    return new


def _constructor(fn: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(type(fn).__init__).parameters
    return {name: p for name, p in parameters.items() if name not in ("self", "validate_args")}


def _whole(constraint: Any) -> bool:
    """Whether a parameter is a whole number, and stays as it is."""
    try:
        return constraint.is_discrete
    except NotImplementedError:  # its range depends on other parameters
        return False


def _free_names(fn: Any) -> dict[str, Any]:
    """Parameters to be moved, with their constraints; of several ways to say the same the last: logits, not probs."""
    named = _constructor(fn)
    found = {n: c for n, c in fn.arg_constraints.items() if n in named and not _whole(c)}
    optional = [name for name in found if named[name].default is None]
    return {name: c for name, c in found.items() if name not in optional[:-1]}


class _Shifted(Messenger):
    """Changes the parameters of a program's latent sites: ``change(site, path, value, constraint, row_dim)``."""

    def __init__(self, change: Callable[..., Tensor]) -> None:
        super().__init__()
        self.change = change

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        name, row_dim = msg["name"], len(msg["fn"].batch_shape) - 1
        msg["fn"] = _changed(msg["fn"], lambda path, v, constraint: self.change(name, path, v, constraint, row_dim))


class _RefinedGuide(nn.Module):
    """A guide whose sites' parameters are shifted for each of its rows."""

    def __init__(
        self, guide: Any, shifts: Mapping[tuple[str, str], Tensor], row_dims: Mapping[tuple[str, str], int]
    ) -> None:
        super().__init__()
        self.guide, self.row_dims = guide, dict(row_dims)
        self.names = list(shifts)
        self.shifts = nn.ParameterList(shifts.values())

    def forward(self, x: Tensor, **context: Any) -> Any:
        """Runs the guide on rows ``x``; the keyword argument ``refined_row`` says which rows they are."""
        if _ROW not in context:
            raise ValueError("a refined guide knows its own rows alone; use it through the pair that refine returned")
        row = context.pop(_ROW)
        shifts = dict(zip(self.names, self.shifts, strict=True))

        def change(site: str, path: str, value: Tensor, constraint: Any, row_dim: int) -> Tensor:
            transform = transform_to(constraint)
            return transform(transform.inv(value) + shifts[site, path].index_select(self.row_dims[site, path], row))

        return _Shifted(change)(self.guide)(x, **context)


class _WithoutRow(nn.Module):
    """A model that is not told which rows it is run on."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor | None = None, **context: Any) -> Any:
        """Runs the model."""
        context.pop(_ROW, None)
        return self.model(x, **context)


class RefinedPair(Pair):
    """A pair whose guide has been refined for certain rows; made by :func:`refine`.

    It is a :class:`~pyro_vae.Pair` for those rows, in any order and number, given with the keyword arguments they were
    refined with: encoding, sampling, imputing and the tools of evaluation then use the refined posterior. Where the
    transform draws at random (dequantised values, bits), the rows keep the draw that they were refined for.
    """

    def __init__(
        self,
        pair: Pair,
        shifts: Mapping[tuple[str, str], Tensor],
        row_dims: Mapping[tuple[str, str], int],
        given: tuple[Tensor, Mapping[str, Any]],
        prepared: tuple[Tensor, dict[str, Any], Tensor],
    ) -> None:
        super().__init__(
            _WithoutRow(pair.model),
            _RefinedGuide(pair.guide, shifts, row_dims),
            transform=pair.transform,
            event_shape=pair.event_shape,
            data_range=pair.data_range,
            missing=cast(Any, pair.missing),
        )
        self._rows = {key: index for index, key in enumerate(self._keys(*given))}
        self._prepared = prepared

    def _keys(self, x: Tensor, context: Mapping[str, Any]) -> list[bytes]:
        """What a row is known by: its content and that of its keyword arguments."""
        columns = [x.to(self.dtype), *(torch.as_tensor(context[name]) for name in sorted(context))]
        arrays = [column.detach().cpu().reshape(len(x), -1).numpy() for column in columns]
        return [b"|".join(array[row].tobytes() for array in arrays) for row in range(len(x))]

    def prepare(self, x: Tensor, context: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any], Tensor]:
        """The rows as they were refined, with the keyword argument that tells the guide which they are.

        Raises:
            ValueError: if a row is not among those that were refined.
        """
        found = [self._rows.get(key, -1) for key in self._keys(x, context)]
        if -1 in found:
            raise ValueError(
                f"row {found.index(-1)} is not among those the guide was refined for: give the same rows with the same "
                f"keyword arguments, or refine the guide for it"
            )
        rows, prepared, log_jacobian = self._prepared
        index = torch.tensor(found, device=rows.device)
        context = {name: value[index] for name, value in prepared.items()}
        return rows[index], {**context, _ROW: index}, log_jacobian[index]


def refine(
    pair: Pair,
    x: Array,
    *,
    steps: int = 500,
    learning_rate: float = 0.05,
    num_particles: int = 16,
    seed: int = 0,
    chunk_size: int = 256,
    **context: Any,
) -> RefinedPair:
    r"""The refined posterior of each row: the guide's own family, with its parameters set free for that row.

    Every continuous parameter of the distributions at the guide's sites is moved, for each row by itself, by Adam on
    the row's ELBO; the formula is at the top of :mod:`pyro_vae.evaluation.refinement`. The learning rate falls along a
    cosine to 0. Wrappers (``Independent``, expanded, masked, mixtures) stay.

    - Where a site depends on another site's draw, it still does: its parameters are shifted by the same amount
      whatever the draw.
    - Of a transformed distribution (a flow) the base is moved, and the transform stays.
    - A guide cannot be refined if it has a latent that belongs to all rows, a ``Delta`` site or another without
      a parameter that can be moved freely, or parameters without a dimension of rows.

    Args:
        pair: The programs. They stay as they are.
        x: Rows ``(N, *E)`` in the user's units.
        steps: Steps of Adam.
        learning_rate: The first one, in the units of the unconstrained parameters.
        num_particles: Draws for each row at each step.
        seed: Seeds the draws of guide and transform.
        chunk_size: Rows at a time.
        context: Keyword arguments of both programs, rows first.

    Returns:
        The pair with the refined guide, for these rows: ``refine(pair, x).encode(x)`` is :math:`q_n(z)`.

    Raises:
        ValueError: if the guide cannot be refined, or a row's ELBO is not finite.

    Source: Cremer et al., *Inference Suboptimality in Variational Autoencoders*, 2018; Kim et al., *Semi-Amortized
    Variational Autoencoders*, 2018.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), 2, likelihood=Normal(scale=1.0)), torch.randn(4, 3)
        >>> refine(vae, x, steps=10).encode(x[2:]).mean.shape
        torch.Size([2, 2])
    """
    if steps < 1 or num_particles < 1:
        raise ValueError(f"steps and num_particles must be at least 1, found {steps} and {num_particles}")
    x = pair.check(x, **context)
    with forked_random_state(pair.device):
        torch.manual_seed(seed)
        rows, prepared, log_jacobian = pair.prepare(x, context)
        row_programs(pair, rows, prepared)  # looks whether every latent belongs to a row
        parts = []
        for start in range(0, len(rows), chunk_size):
            here = slice(start, start + chunk_size)
            batch = {name: value[here] for name, value in prepared.items()}
            parts.append(_fit_shifts(pair, rows[here], batch, steps, learning_rate, num_particles, start))
    shifts = {key: torch.cat([values[key] for values, _ in parts], dim=row_dim) for key, row_dim in parts[0][1].items()}
    return RefinedPair(pair, shifts, parts[0][1], (x, context), (rows, prepared, log_jacobian))


def _zero_shifts(guide: Any, x: Tensor, context: Mapping[str, Any]) -> tuple[dict, dict[tuple[str, str], int]]:
    """A shift of nothing for each parameter of each site, and the dimension of its rows."""
    shifts: dict[tuple[str, str], Tensor] = {}
    row_dims: dict[tuple[str, str], int] = {}
    stuck: list[str] = []  # said when the programs have ended, for Pyro adds the shapes of its sites to what is raised

    def look(site: str, path: str, value: Tensor, constraint: Any, row_dim: int) -> Tensor:
        try:
            free = transform_to(constraint).inv(value)
        except NotImplementedError:
            stuck.append(
                f"the parameter {path!r} at its site {site!r} cannot be moved freely, for its range depends on others"
            )
            return value
        if value.dim() <= row_dim or value.shape[row_dim] != len(x):
            stuck.append(
                f"the parameter {path!r} at its site {site!r} has shape {tuple(value.shape)}, without a dimension for "
                f"the {len(x)} rows"
            )
        shifts[site, path], row_dims[site, path] = torch.zeros_like(free), row_dim
        return value

    with evaluating(guide):
        nodes = prune_subsample_sites(poutine.trace(_Shifted(look)(guide)).get_trace(x, **context)).nodes
    for name, site in nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and name not in {site for site, _ in shifts}:
            stuck.append(f"the {type(site['fn']).__name__} at its site {name!r} has no parameters that could be moved")
    if stuck:
        raise ValueError(f"the guide cannot be refined: {stuck[0]}")
    return shifts, row_dims


def _fit_shifts(
    pair: Pair, x: Tensor, context: dict[str, Any], steps: int, learning_rate: float, num_particles: int, first: int
) -> tuple[dict, dict[tuple[str, str], int]]:
    shifts, row_dims = _zero_shifts(pair.guide, x, context)
    guide = _RefinedGuide(pair.guide, shifts, row_dims)
    index = torch.arange(len(x), device=x.device).repeat_interleave(num_particles)
    repeated = {name: value[index] for name, value in context.items()}
    model, refined = unscaled(_WithoutRow(pair.model)), unscaled(guide)
    free = list(guide.shifts)
    optimiser = torch.optim.Adam(free, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with evaluating(pair.model, pair.guide), torch.enable_grad():
        for _ in range(steps):
            terms = elbo_terms(model, refined, x[index], {**repeated, _ROW: index}, kl="auto")
            loss = -len(x) * terms.surrogate  # each row's own, whatever their number
            for parameter, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
                parameter.grad = gradient
            optimiser.step()
            schedule.step()
    final = {key: value.detach() for key, value in zip(guide.names, free, strict=True)}
    for key, value in final.items():
        bad = ~value.isfinite().movedim(row_dims[key], 0).reshape(len(x), -1).all(1)
        if bool(bad.any()):
            raise ValueError(
                f"refining the row at index {first + int(bad.nonzero()[0])} came to values that are not finite: "
                f"look at its log-probabilities, or take a smaller learning_rate than {learning_rate:g}"
            )
    return final, row_dims


@dataclass(frozen=True)
class Gaps:
    r"""Where evidence is lost, for each row, in nats; every field is ``(N,)`` in float64.

    .. math:: \log p(x) - \mathrm{ELBO}(x) = \underbrace{\mathrm{ELBO}^*(x) - \mathrm{ELBO}(x)}_\text{amortisation}
        + \underbrace{\log p(x) - \mathrm{ELBO}^*(x)}_\text{approximation}

    Args:
        log_evidence: log p(x), as it was given.
        elbo: The guide's ELBO.
        refined_elbo: The ELBO of the refined posterior.
        elbo_se: Standard error of ``elbo`` over the draws.
        refined_elbo_se: Likewise.
    """

    log_evidence: Tensor
    elbo: Tensor
    refined_elbo: Tensor
    elbo_se: Tensor
    refined_elbo_se: Tensor

    @property
    def amortisation(self) -> Tensor:
        """What one network for all rows costs; recovered by refining."""
        return self.refined_elbo - self.elbo

    @property
    def amortisation_se(self) -> Tensor:
        """Standard error of :attr:`amortisation` over the draws."""
        return (self.elbo_se.square() + self.refined_elbo_se.square()).sqrt()

    @property
    def approximation(self) -> Tensor:
        """What the family of the guide costs."""
        return self.log_evidence - self.refined_elbo

    @property
    def approximation_se(self) -> Tensor:
        """Standard error of :attr:`approximation` over the draws, that of the evidence left out."""
        return self.refined_elbo_se

    def summary(self) -> dict[str, float]:
        """Means over rows, each with its standard error over rows under the same name and ``_se``."""
        found: dict[str, float] = {}
        for name in ("amortisation", "approximation"):
            values: Tensor = getattr(self, name)
            found[name] = float(values.mean())
            if len(values) > 1:
                found[f"{name}_se"] = float(values.std() / len(values) ** 0.5)
        return found


def gaps(
    pair: Pair,
    x: Array,
    log_evidence: Array,
    *,
    refined: RefinedPair | None = None,
    num_particles: int = 1000,
    seed: int = 0,
    steps: int = 500,
    **context: Any,
) -> Gaps:
    r"""Splits log p(x) − ELBO of each row into what amortisation costs and what the guide's family costs.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the user's units.
        log_evidence: log p(x) of each row in the user's units, ``(N,)``: in closed form, or by importance sampling
            (from the refined pair it is best). Where the transform draws at random, it must be of the very draw, so
            take it from the refined pair, and give that here.
        refined: What :func:`refine` returned for these rows; by default it is made here.
        num_particles: Draws for each row of either ELBO.
        seed: Seeds all draws.
        steps: Steps of :func:`refine`.
        context: Keyword arguments of both programs, rows first.

    Returns:
        The gaps, row by row, with standard errors. A gap near 0 may come out below it, within its error.

    Raises:
        ValueError: if ``log_evidence`` has not one number for each row, or the guide cannot be refined.

    Source: Cremer et al., *Inference Suboptimality in Variational Autoencoders*, 2018.
    """
    x = pair.check(x, **context)
    evidence = torch.as_tensor(log_evidence).double().to(pair.device)
    if evidence.shape != (len(x),):
        raise ValueError(f"log_evidence has shape {tuple(evidence.shape)}, expected one number for {len(x)} rows")
    if num_particles < 2:
        raise ValueError(f"num_particles must be at least 2, for a standard error; found {num_particles}")
    if refined is None:
        refined = refine(pair, x, steps=steps, seed=seed, **context)
    rows, prepared, log_jacobian = refined.prepare(x, context)
    plain = {name: value for name, value in prepared.items() if name != _ROW}
    estimates = []
    with forked_random_state(pair.device):
        torch.manual_seed(seed)
        for which, given in ((pair, plain), (refined, prepared)):
            weights = log_weights(which, rows, given, num_particles)
            estimates.append((weights.mean(0) + log_jacobian.double(), weights.std(0) / num_particles**0.5))
    (elbo, elbo_se), (refined_elbo, refined_elbo_se) = estimates
    return Gaps(evidence, elbo, refined_elbo, elbo_se, refined_elbo_se)
