r"""The best posterior in the guide's own family for each row, and the two gaps between ELBO and evidence.

A guide is amortised: one network serves all rows. Here each parameter :math:`\phi` of the distributions at its sites
becomes free for each row n, by a shift in unconstrained space,

.. math:: \phi_n = T\left(T^{-1}(\phi(x_n, \ldots)) + \delta_n\right)

with T from ``transform_to(arg_constraints[…])``, and :math:`\delta_n` maximises the ELBO of that row. The guide's
program itself is unchanged, so its dependence on x, on keyword arguments and on its own earlier draws remains.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, transform_to

from pyro_vae._support.devices import memory_for_draws
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.evidence import draw_log_weights
from pyro_vae.inference.batch import Batch, rows_that_fit
from pyro_vae.inference.objectives import Elbo
from pyro_vae.inference.sites import run_pair, unscaled
from pyro_vae.inference.structure import Structure, sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.arguments import accepted
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["Gaps", "RefinedPair", "gaps", "refine"]

_ROW = "refined_row"  # the keyword argument that tells the refined guide its rows


Key = tuple[str, str]  # a latent site, and the path to a parameter of its distribution
Change = Callable[[str, Tensor, Any], Tensor]


def _changed(fn: Any, change: Change, path: str = "") -> Any:
    """The same distribution, with ``change(path, value, constraint)`` applied to each parameter of its parts."""
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
    """Whether a parameter is an integer, and so is not changed."""
    try:
        return constraint.is_discrete
    except NotImplementedError:  # its range depends on other parameters
        return False


def _free_names(fn: Any) -> dict[str, Any]:
    """Parameters to move, with their constraints; of alternative parameters the last: logits, not probs."""
    named = _constructor(fn)
    found = {n: c for n, c in fn.arg_constraints.items() if n in named and not _whole(c)}
    optional = [name for name in found if named[name].default is None]
    return {name: c for name, c in found.items() if name not in optional[:-1]}


class _Shifted(Messenger):
    """Changes the parameters of a program's latent sites: ``change(site, path, value, constraint, row_dim)``.

    A parameter's dimension ``row_dim`` is that of rows, counted from the right so that plates of draws do not shift it.
    """

    def __init__(self, change: Callable[..., Tensor]) -> None:
        super().__init__()
        self.change = change

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        name, num_batch = msg["name"], len(msg["fn"].batch_shape)
        msg["fn"] = _changed(
            msg["fn"], lambda path, v, constraint: self.change(name, path, v, constraint, num_batch - 1 - v.dim())
        )


class _RefinedGuide(nn.Module):
    """A guide whose sites' parameters are shifted for each of its rows."""

    def __init__(self, guide: Any, shifts: Mapping[Key, Tensor], row_dims: Mapping[Key, int]) -> None:
        super().__init__()
        self.guide, self.row_dims = guide, dict(row_dims)
        self.names = list(shifts)
        self.shifts = nn.ParameterList(shifts.values())
        taken = accepted(guide)
        self.arguments = None if taken is None else (*taken, _ROW)

    def forward(self, x: Tensor, *, refined_row: Tensor, **arguments: Any) -> Any:
        """Runs the guide on rows ``x``; ``refined_row`` has their indices among the rows that it was refined for."""
        shifts = dict(zip(self.names, self.shifts, strict=True))

        def change(site: str, path: str, value: Tensor, constraint: Any, row_dim: int) -> Tensor:
            transform, dim = transform_to(constraint), self.row_dims[site, path]
            return transform(transform.inv(value) + shifts[site, path].index_select(dim, refined_row))

        return _Shifted(change)(self.guide)(x, **arguments)


class RefinedPair(Pair):
    """A pair whose guide has been refined for certain rows; made by :func:`refine`.

    The guide identifies those rows by index, in a keyword argument ``refined_row``. :meth:`rows` returns rows with it,
    for every tool: ``refined.encode(refined.rows())``, ``log_evidence(refined, refined.rows([3, 0]))``. If the
    transform is random (dequantised values, bits), the rows keep the draw that they were refined for.
    """

    def __init__(
        self,
        pair: Pair,
        shifts: Mapping[Key, Tensor],
        row_dims: Mapping[Key, int],
        given: Mapping[str, Any],
        batch: Batch,
    ) -> None:
        model = pair.model
        super().__init__(
            model if accepted(model) is not None else _without_row(model),
            _RefinedGuide(pair.guide, shifts, row_dims),
            transform=pair.transform,
            event_shape=pair.event_shape,
            data_range=pair.data_range,
            missing="nan" if pair.missing else None,
        )
        self.num_rows = pair.num_rows
        number = torch.arange(len(batch), device=batch.x.device)
        self._refined_rows = {**given, _ROW: number}
        self._refined_batch = batch.replace(**{_ROW: number})

    def rows(self, index: Any = None) -> dict[str, Any]:
        """The rows that the guide was refined for, as they were passed in, with their indices.

        Args:
            index: Indices of some of them, in any order; by default all.
        """
        if index is None:
            return dict(self._refined_rows)
        index = torch.as_tensor(index, device=self.device)
        by_row = {"x", *self._refined_batch.context}
        return {name: value[index] if name in by_row else value for name, value in self._refined_rows.items()}

    def prepare(self, rows: Mapping[str, Any] | Inputs) -> Batch:
        """The rows with these indices, as they were refined.

        Raises:
            ValueError: if there is no index, or it is not one of a refined row.
        """
        number = rows.get(_ROW) if isinstance(rows, Mapping) else None
        if number is None:
            raise ValueError("the guide was refined for certain rows: pass refined.rows(), or refine it for others")
        number = torch.as_tensor(number, device=self._refined_batch.x.device)
        if bool(((number < 0) | (number >= len(self._refined_batch))).any()):
            raise ValueError(
                f"{_ROW} must be from 0 to {len(self._refined_batch) - 1}, the rows that the guide was refined for"
            )
        return self._refined_batch[number]


def _without_row(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model that accepts ``refined_row`` and ignores it."""

    def program(x: Tensor | None = None, *, refined_row: Any = None, **arguments: Any) -> Any:
        return model(x, **arguments)

    return program


def refine(
    pair: Pair,
    x: Inputs,
    *,
    steps: int = 500,
    learning_rate: float = 0.05,
    num_particles: int = 16,
    seed: int = 0,
    chunk_size: int = 256,
) -> RefinedPair:
    r"""Refines the posterior of each row: the guide's own family, with free parameters for that row.

    For each row separately, Adam moves every continuous parameter of the distributions at the guide's sites to maximise
    the row's ELBO; the formula is at the top of :mod:`pyro_vae.evaluation.refinement`. The learning rate falls to 0
    along a cosine. Wrappers (``Independent``, expanded, masked, mixtures) remain.

    - The ELBO is the reported one: without the programs' scales, with their masks, and without sites that the guide
      observes or its factors. Latents that the model enumerates are summed over, and not refined.
    - A site that depends on another site's draw still does: its parameters are shifted by the same amount whatever
      the draw.
    - For a transformed distribution (a flow) the base is moved, and the transform is unchanged.
    - A guide cannot be refined if it has a latent that belongs to all rows, a ``Delta`` site or another without
      a parameter that can be moved freely, parameters without a dimension of rows, or no latents.

    Args:
        pair: The programs. They are not changed.
        x: Rows ``(N, *E)`` in the user's units, or a mapping of ``"x"`` and the programs' keyword arguments.
        steps: Steps of Adam.
        learning_rate: The initial one, in the units of the unconstrained parameters.
        num_particles: Draws for each row at each step.
        seed: Seeds the draws from the guide.
        chunk_size: Rows at a time.

    Returns:
        The pair with the guide refined for these rows: with ``refined = refine(pair, x)``,
        ``refined.encode(refined.rows())`` is :math:`q_n(z)`.

    Raises:
        ValueError: if rows or programs do not fit, the guide cannot be refined, or a row's ELBO is not finite.

    Source: Cremer et al., *Inference Suboptimality in Variational Autoencoders*, 2018; Kim et al., *Semi-Amortized
    Variational Autoencoders*, 2018.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), 2, likelihood=Normal(scale=1.0)), torch.randn(4, 3)
        >>> refined = refine(vae, x, steps=10)
        >>> refined.encode(refined.rows([3, 0])).mean.shape
        torch.Size([2, 2])
    """
    if steps < 1 or num_particles < 1:
        raise ValueError(f"steps and num_particles must be at least 1, found {steps} and {num_particles}")
    given = _all_rows(pair, x)
    with forked_random_state(pair.device):
        torch.manual_seed(seed)
        batch = pair.prepare(given)
        structure = pair.structure(batch)
        structure.require_local()
        if not structure.guided:
            raise ValueError("the guide cannot be refined: it draws no latents")
        fits = [
            _Fit(pair, structure, part).run(steps, learning_rate, num_particles, first)
            for first, part in zip(range(0, len(batch), chunk_size), batch.chunks(chunk_size), strict=True)
        ]
    row_dims = fits[0].row_dims
    shifts = {key: torch.cat([fit.shifts[key] for fit in fits], dim=dim) for key, dim in row_dims.items()}
    return RefinedPair(pair, shifts, row_dims, given, batch)


def _all_rows(pair: Pair, x: Inputs) -> dict[str, Any]:
    """All rows in memory, as they were passed in."""
    return next(pair.check(x).chunks(2**62))


class _Fit:
    """Shifts of the guide's parameters for some rows."""

    def __init__(self, pair: Pair, structure: Structure, batch: Batch) -> None:
        self.pair, self.structure, self.batch = pair, structure, batch
        self.shifts: dict[Key, Tensor] = {}
        self.row_dims: dict[Key, int] = {}
        self._look()

    def _look(self) -> None:
        """Finds each parameter of each site, with a shift of zero, and the dimension of its rows.

        Raises:
            ValueError: if a parameter cannot be moved.
        """
        stuck: list[str] = []  # raised after the programs, as Pyro adds the shapes of its sites to errors

        def look(site: str, path: str, value: Tensor, constraint: Any, row_dim: int) -> Tensor:
            try:
                free = transform_to(constraint).inv(value)
            except NotImplementedError:
                stuck.append(
                    f"the parameter {path!r} at its site {site!r} cannot be moved freely, because its range "
                    f"depends on others"
                )
                return value
            if not 0 < -row_dim <= value.dim() or value.shape[row_dim] != len(self.batch):
                stuck.append(
                    f"the parameter {path!r} at its site {site!r} has shape {tuple(value.shape)}, without a dimension "
                    f"for the {len(self.batch)} rows"
                )
            self.shifts[site, path], self.row_dims[site, path] = torch.zeros_like(free), row_dim
            return value

        guide = _Shifted(look)(self.pair.programs[1])
        with evaluating(self.pair.guide):
            sites = sample_sites(poutine.trace(guide).get_trace(self.batch.x, **self.batch.arguments))
        for name, site in sites.items():
            if not site["is_observed"] and name not in {site for site, _ in self.shifts}:
                stuck.append(f"the {type(site['fn']).__name__} at its site {name!r} has no parameters to move")
        if stuck:
            raise ValueError(f"the guide cannot be refined: {stuck[0]}")

    def run(self, steps: int, learning_rate: float, num_particles: int, first: int) -> "_Fit":
        """Moves the shifts along the gradient of each row's ELBO; ``first`` is the index of the first row."""
        model, guide = self.pair.programs
        refined = _RefinedGuide(guide, self.shifts, self.row_dims)
        programs = unscaled(_without_row(model)), unscaled(refined)
        free = list(refined.shifts)
        batch, particles = self._repeated(num_particles)
        objective, progress = Elbo(kl="auto"), torch.zeros(())
        optimiser = torch.optim.Adam(free, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        checks = pyro.validation_enabled(is_validate=False)  # they were validated when inspected
        with checks, evaluating(self.pair.model, self.pair.guide), torch.enable_grad():
            for _ in range(steps):
                draws = run_pair(*programs, batch, self.structure, num_particles=particles)
                draws = draws.where(lambda term: term.is_local and term.kind != "auxiliary")
                loss = -len(self.batch) * objective(draws, progress).mean()  # each row's own, for any number of rows
                for parameter, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
                    parameter.grad = gradient
                optimiser.step()
                schedule.step()
        self.shifts = {key: value.detach() for key, value in zip(refined.names, free, strict=True)}
        self._check_finite(first, learning_rate)
        return self

    def _repeated(self, num_particles: int) -> tuple[Batch, int | None]:
        """The rows with their indices, and the draws for each; or each row repeated, with one draw."""
        number = torch.arange(len(self.batch), device=self.batch.x.device)
        batch = self.batch.replace(**{_ROW: number})
        if self.structure.vectorised:
            return batch, num_particles
        return batch[number.repeat_interleave(num_particles)], None

    def _check_finite(self, first: int, learning_rate: float) -> None:
        for key, value in self.shifts.items():
            bad = ~value.isfinite().movedim(self.row_dims[key], 0).reshape(len(self.batch), -1).all(1)
            if bool(bad.any()):
                raise ValueError(
                    f"refining the row at index {first + int(bad.nonzero()[0])} gave values that are not finite: check "
                    f"its log-probabilities, or use a smaller learning_rate than {learning_rate:g}"
                )


@dataclass(frozen=True)
class Gaps:
    r"""Where evidence is lost, for each row, in nats; every field is ``(N,)`` in float64.

    .. math:: \log p(x) - \mathrm{ELBO}(x) = \underbrace{\mathrm{ELBO}^*(x) - \mathrm{ELBO}(x)}_\text{amortisation}
        + \underbrace{\log p(x) - \mathrm{ELBO}^*(x)}_\text{approximation}

    Args:
        log_evidence: log p(x), as passed to :func:`gaps`.
        elbo: The guide's ELBO.
        refined_elbo: The ELBO of the refined posterior.
        elbo_se: Standard error of ``elbo`` over the draws.
        refined_elbo_se: Standard error of ``refined_elbo`` over the draws.
    """

    log_evidence: Tensor
    elbo: Tensor
    refined_elbo: Tensor
    elbo_se: Tensor
    refined_elbo_se: Tensor

    @property
    def amortisation(self) -> Tensor:
        """The cost of one network for all rows; refining recovers it."""
        return self.refined_elbo - self.elbo

    @property
    def amortisation_se(self) -> Tensor:
        """Standard error of :attr:`amortisation` over the draws."""
        return (self.elbo_se.square() + self.refined_elbo_se.square()).sqrt()

    @property
    def approximation(self) -> Tensor:
        """The cost of the guide's family."""
        return self.log_evidence - self.refined_elbo

    @property
    def approximation_se(self) -> Tensor:
        """Standard error of :attr:`approximation` over the draws, without that of the evidence."""
        return self.refined_elbo_se

    def summary(self) -> dict[str, float]:
        """Means over rows; the standard error over rows has the same name with ``_se``."""
        found: dict[str, float] = {}
        for name in ("amortisation", "approximation"):
            values: Tensor = getattr(self, name)
            found[name] = float(values.mean())
            if len(values) > 1:
                found[f"{name}_se"] = float(values.std() / len(values) ** 0.5)
        return found


def gaps(
    pair: Pair,
    x: Inputs,
    log_evidence: Any,
    *,
    refined: RefinedPair | None = None,
    num_particles: int = 1000,
    seed: int = 0,
    steps: int = 500,
) -> Gaps:
    r"""Splits log p(x) − ELBO of each row into the costs of amortisation and of the guide's family.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the user's units, or a mapping of ``"x"`` and the programs' keyword arguments.
        log_evidence: log p(x) of each row in the user's units, ``(N,)``: in closed form, or by importance sampling
            (best from the refined pair). If the transform is random, it must be for the same draw: compute it from
            the refined pair, and pass that pair as ``refined``.
        refined: The result of :func:`refine` for these rows; by default it is computed here.
        num_particles: Draws for each row, for either ELBO.
        seed: Seeds all draws.
        steps: Steps of :func:`refine`.

    Returns:
        The gaps, row by row, with standard errors. An estimate of a gap near 0 may be negative, within its error.

    Raises:
        ValueError: if ``log_evidence`` does not have one number for each row, or the guide cannot be refined, or was
            refined for other rows.

    Source: Cremer et al., *Inference Suboptimality in Variational Autoencoders*, 2018.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.evaluation import log_evidence
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), 2, likelihood=Normal(scale=1.0)), torch.randn(4, 3)
        >>> refined = refine(vae, x, steps=50)
        >>> evidence = log_evidence(refined, refined.rows(), num_particles=1000)
        >>> gaps(vae, x, evidence.log_evidence, refined=refined).amortisation.shape
        torch.Size([4])
    """
    given = _all_rows(pair, x)
    evidence = torch.as_tensor(log_evidence).double().to(pair.device)
    if evidence.shape != (len(given["x"]),):
        raise ValueError(
            f"log_evidence has shape {tuple(evidence.shape)}, expected one number for {len(given['x'])} rows"
        )
    if num_particles < 2:
        raise ValueError(f"num_particles must be at least 2, for a standard error; found {num_particles}")
    if refined is None:
        refined = refine(pair, given, steps=steps, seed=seed)
    known = refined.rows()
    if not all(_same(value, known.get(name)) for name, value in given.items()):
        raise ValueError("the guide was refined for other rows than x: refine it for these")
    batch = refined.prepare(known)
    elbo, elbo_se = _elbo(pair, batch.replace(**{_ROW: None}), num_particles, seed)
    refined_elbo, refined_elbo_se = _elbo(refined, batch, num_particles, seed)
    return Gaps(evidence, elbo, refined_elbo, elbo_se, refined_elbo_se)


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _elbo(pair: Pair, batch: Batch, num_particles: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each row's ELBO in the user's units, with its standard error over the draws."""
    structure = pair.structure(batch, count_bytes=True)
    at_once = rows_that_fit(structure.bytes_per_draw * num_particles, budget=memory_for_draws(pair.device))
    means, errors = [], []
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        for part in batch.chunks(at_once):
            weights = draw_log_weights(pair, part, structure, num_particles).double()
            means.append(weights.mean(0) + part.log_jacobian.double())
            errors.append(weights.std(0) / num_particles**0.5)
    return torch.cat(means), torch.cat(errors)
