"""Does a pair of programs keep the contract, and what will each tool do with it?"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyro import poutine

from pyro_vae.data.rows import Inputs, Rows
from pyro_vae.evaluation.latent_density import latent_layout
from pyro_vae.evaluation.nuts import moved_by_nuts
from pyro_vae.evaluation.refinement import refine
from pyro_vae.evaluation.simulation import Simulator
from pyro_vae.inference import predictive
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.inspection import LOOKED_AT
from pyro_vae.inference.structure import PROGRAM_ERRORS, ContractError, Structure, sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.arguments import accepted, check_mask
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["Clause", "Contract", "check_pair"]


@dataclass(frozen=True)
class Clause:
    """One clause of the contract.

    Args:
        name: Its subject.
        text: What was found.
        holds: Whether it holds; None if that could not be checked.
    """

    name: str
    text: str
    holds: bool | None = True


@dataclass(frozen=True)
class Contract:
    """The result of :func:`check_pair`. It is true if every clause holds, and prints readably.

    Args:
        clauses: The clauses, with what holds and what does not.
        tools: What each tool will do with the pair, by name: ``"works"`` and how, or why it refuses.
    """

    clauses: tuple[Clause, ...]
    tools: Mapping[str, str]

    def __bool__(self) -> bool:
        return all(clause.holds for clause in self.clauses)

    @property
    def broken(self) -> list[Clause]:
        """The clauses that do not hold."""
        return [clause for clause in self.clauses if clause.holds is False]

    def __str__(self) -> str:
        signs = {True: "✓", False: "✗", None: "·"}
        width = max(len(name) for name in self.tools) if self.tools else 0
        lines = [f"{signs[clause.holds]} {clause.name}: {clause.text}" for clause in self.clauses]
        return "\n".join([*lines, "", *(f"{name:<{width}}  {text}" for name, text in self.tools.items())])


def check_pair(pair: Pair, x: Inputs) -> Contract:
    r"""Runs a pair's programs on a few rows and reports, clause by clause, whether they keep the contract.

    The library's tools check programs in the same way before they run them, so they will do what is reported here.

    Args:
        pair: The programs.
        x: Rows with the programs' keyword arguments, as :func:`~pyro_vae.fit` takes them; a few are used.

    Returns:
        What holds and what does not, and so what each tool will do.

    Raises:
        ValueError: if the rows do not fit; problems in the programs are returned, not raised.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x=None, *, batch_size=None):
        ...     with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         return pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     weight = pyro.param("weight", torch.tensor(0.5))
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(weight * x, 0.5).to_event(1))
        >>> bool(check_pair(Pair(model, guide), torch.randn(10, 2)))
        True
        >>> def loud(x):
        ...     pyro.sample("z", dist.Normal(x, 0.5).to_event(2))
        >>> print(check_pair(Pair(model, loud), torch.randn(10, 2)).broken[0].text)
        the latent 'z' is in the plate 'data' in one program and outside of it in the other
    """
    rows = pair.check(x)
    with forked_random_state(pair.device):
        batch = pair.prepare(next(rows.chunks(min(LOOKED_AT, rows.num_rows))))
        return _Look(pair, rows, batch).contract()


class _Look:
    """One check of a pair."""

    def __init__(self, pair: Pair, rows: Rows, batch: Batch) -> None:
        self.pair, self.rows, self.batch = pair, rows, batch
        self.structure: Structure | None = None
        self.forward: str | None = None  # why the model does not run without data
        self.drawn: list[str] = []

    def contract(self) -> Contract:
        clauses = [self._arguments(), self._sites(), self._forward(), self._plates(), self._modules()]
        if self.structure is not None:
            clauses.append(self._draws(self.structure))
        return Contract(tuple(clauses), dict(self._tools()))

    def _arguments(self) -> Clause:
        given = [name for name in self.batch.arguments if name != "mask"]
        taken = {}
        for which in ("model", "guide"):
            names = accepted(getattr(self.pair, which))
            taken[which] = "any" if names is None else ", ".join(sorted(names)) or "none"
        text = f"{', '.join(given) or 'none'} given; the model takes {taken['model']}, the guide {taken['guide']}"
        return Clause("keyword arguments", text)

    def _sites(self) -> Clause:
        try:
            self.structure = self.pair.structure(self.batch)
        except ContractError as error:
            return Clause("sites", str(error), holds=False)
        except PROGRAM_ERRORS as error:
            return Clause("sites", f"the programs fail on these rows: {_sentence(error)}", holds=False)
        parts = []
        for name, latent in self.structure.latents.items():
            kind = "of each row" if latent.is_local else "global, shared by all rows"
            plates = f" and {', '.join(latent.plates)}" if latent.plates else ""
            summed = f", enumerated in the {latent.enumerated}" if latent.enumerated else ""
            parts.append(f"{name} ({kind}{plates}{', discrete' if latent.is_discrete else ''}{summed})")
        extra = f"; the guide's own: {', '.join(self.structure.auxiliary)}" if self.structure.auxiliary else ""
        observed = ", ".join(self.structure.observed)
        return Clause("sites", f"observed {observed}; latent {', '.join(parts) or 'none'}{extra}")

    def _forward(self) -> Clause:
        name = "rows without data"
        try:
            with evaluating(self.pair.model):
                arguments = predictive.without_sites(self.batch, self._known(), list(self._known().observed))
                model = self.pair.programs[0]
                trace = poutine.trace(model).get_trace(batch_size=len(self.batch), **arguments)
            self.drawn = list(sample_sites(trace))
            predictive.check_sites(trace.nodes, ("x",))
            site: Any = trace.nodes["x"]
            found = tuple(predictive.rows_first(site, site["value"]).shape)
        except PROGRAM_ERRORS as error:
            self.forward = f"the model does not draw rows without data: {_sentence(error)}"
            return Clause(name, f"{self.forward}: {predictive.remedy(error)}", holds=False)
        if found != tuple(self.batch.x.shape):
            self.forward = f"the model draws rows of shape {found} where the data have {tuple(self.batch.x.shape)}"
            return Clause(name, self.forward, holds=False)
        return Clause(name, f"model(batch_size={len(self.batch)}) draws x of shape {found}")

    def _known(self) -> Structure:
        return self.structure or Structure({}, {"x": "x"})

    def _plates(self) -> Clause:
        if self.structure is None:
            return Clause("plates", "not checked", holds=None)
        depth = self.structure.nesting
        inner = sorted({plate for latent in self.structure.latents.values() for plate in latent.plates})
        text = "'data' at dim -1"
        if depth > 1:
            text += f", others up to dim {-depth}{': ' + ', '.join(inner) if inner else ''}"
        return Clause("plates", text)

    def _modules(self) -> Clause:
        num = sum(p.numel() for p in self.pair.parameters())
        found = ", ".join(name for name, _ in self.pair.named_children() if name != "transform") or "no modules"
        return Clause("parameters", f"{num:,} in modules ({found}); pyro.param adds its own")

    def _draws(self, structure: Structure) -> Clause:
        if structure.vectorised:
            return Clause("many draws at once", f"under a plate at dim {structure.particle_dim}")
        return Clause(
            "many draws at once",
            f"not possible ({structure.reason}); tools run the programs draw by draw, which is slower",
        )

    def _tools(self) -> Iterator[tuple[str, str]]:
        if self.structure is None:
            yield "every tool that runs the guide", "refused: see above"
            yield "sample", (self.forward and f"refused: {self.forward}") or _refusal(self._sample) or "works"
            yield "nuts_posterior", self._nuts() or "works"
            return
        s = self.structure
        forward = self.forward and f"refused: {self.forward}"
        local = _refusal(s.require_local)
        weighted = _refusal(s.require_weights)
        how = "works, many draws at once" if s.vectorised else "works, draw by draw"
        yield "fit", self._fit()
        yield "sample", forward or _refusal(self._sample) or "works"
        yield "posterior_predictive", forward or "works"
        yield "reconstruct", forward or self._reconstruct() or "works"
        yield "encode", self._encode(s)
        yield "evaluate", "works"
        yield "log_evidence", local or weighted or how
        yield "ais_bounds", local or self._look_at(lambda: latent_layout(self.pair, s, self.batch, "guide")) or how
        yield "refine", local or _refusal(lambda: refine(self.pair, next(self.rows.chunks(2)), steps=1)) or "works"
        yield "simulation_based_calibration", forward or local or _refusal(self._simulate) or "works"
        yield "nuts_posterior", self._nuts() or "works"
        yield "impute", forward or local or weighted or self._impute()
        yield "save", "works"

    def _fit(self) -> str:
        from pyro_vae.training.lowerable import why_not_lowered  # imports the tracer

        try:
            reason = why_not_lowered(self.pair, self.rows, self._known())
        except ValueError as error:
            return f"refused: {error}"
        return "works, compiled where it pays off" if reason is None else f"works, running the programs: {reason}"

    def _sample(self) -> None:
        observed = list(self._known().observed)
        given = predictive.without_sites(self.batch, self._known(), observed)
        self.pair.sample(len(self.batch), given={name: value for name, value in given.items() if name != "mask"})

    def _reconstruct(self) -> str | None:
        return _refusal(lambda: self.pair.reconstruct(next(self.rows.chunks(1))))

    def _simulate(self) -> None:
        Simulator(self.pair, self.batch)

    def _nuts(self) -> str | None:
        return self._look_at(lambda: moved_by_nuts(self.pair, self.batch))

    def _look_at(self, look: Callable[[], Any]) -> str | None:
        with evaluating(self.pair.model, self.pair.guide):
            return _refusal(look)

    def _encode(self, structure: Structure) -> str:
        if not structure.latents:
            return "refused: the model has no latents"
        try:
            structure.site()
        except ValueError:
            return f"works, for the latent named by site=: {', '.join(structure.latents)}"
        return "works"

    def _impute(self) -> str:
        taken = accepted(self.pair.model) or set()
        others = [name for name in self.batch.arguments if f"{name}_mask" in taken]
        gaps = [name.removesuffix("_observed") for name in self._known().observed if name.endswith("_observed")]
        why = _refusal(lambda: check_mask(self.pair.model))
        if why and (others or gaps):
            return f"works for gaps in {', '.join([*others, *gaps])}, with sites=; for gaps in x {why}"
        return why or "works"


def _refusal(look: Callable[[], Any]) -> str | None:
    try:
        look()
    except PROGRAM_ERRORS as error:
        return f"refused: {error if isinstance(error, (TypeError, ValueError)) else _sentence(error)}"
    return None


def _sentence(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
