"""The structure of a pair of Pyro programs, as all tools use it: sites, plates, ways to run them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

__all__ = [
    "PROGRAM_ERRORS",
    "ContractError",
    "Fixed",
    "Latent",
    "Structure",
    "first_line",
    "innermost",
    "is_discrete",
    "is_local",
    "is_point",
    "is_unobserved_part",
    "nothing",
    "sample_sites",
    "some",
    "under_particles",
    "vectorised_frames",
]

PARTICLES = "particles"  # the plate of the draws

Program = Callable[..., Any]


# Errors that programs raise for arguments that do not fit; NotImplementedError is a RuntimeError.
PROGRAM_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class ContractError(ValueError):
    """A clause of the contract that a pair of programs breaks, in one sentence."""


def first_line(error: Exception) -> str:
    r"""An error's message, without the trace shapes that Pyro adds.

    Example:
        >>> first_line(ValueError("Error at site 'x':\nnot an integer\n    Trace Shapes:"))
        "ValueError: Error at site 'x': not an integer"
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no details"]
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]
    return text if isinstance(error, ContractError) else f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class Latent:
    """One latent site of a model.

    Args:
        name: Name of the site.
        is_local: Whether it is in the plate ``"data"``; else it is global, one for all rows.
        enumerated: ``"model"`` or ``"guide"`` if that program marks it ``infer={"enumerate": "parallel"}``. A latent
            that the model enumerates is summed over, and the guide has no site for it.
        is_discrete: Whether its support is discrete.
        has_rsample: Whether draws can be differentiated through.
        event_dim: Number of dimensions of one event.
        plates: Names of its plates between the batch and the draws, such as words of a document.
    """

    name: str
    is_local: bool
    enumerated: Literal["model", "guide"] | None
    is_discrete: bool
    has_rsample: bool
    event_dim: int
    plates: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """What a pair of programs samples, and how it can be run.

    Args:
        latents: The model's latent sites, in the model's order.
        observed: The model's observed sites, each with the keyword argument that holds its value; None if that is not
            known.
        auxiliary: The guide's observed sites and factors.
        extra: Sites that only the guide draws, marked ``is_auxiliary``.
        subsampled: Plates within a row that subsample their elements.
        nesting: Number of dimensions that the programs' plates use, from the right.
        vectorised: Whether the programs can run for many draws at once, under a plate left of all others.
        reason: Why they cannot.
        points: Latents that the guide sets to a point.
        bytes_per_draw: An upper bound on the memory of one draw for one row: everything that a run allocates, as if
            nothing were freed before its end.
    """

    latents: Mapping[str, Latent]
    observed: Mapping[str, str | None]
    auxiliary: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    subsampled: tuple[str, ...] = ()
    nesting: int = 1
    vectorised: bool = True
    reason: str = ""
    points: tuple[str, ...] = ()
    bytes_per_draw: int = 1

    @property
    def particle_dim(self) -> int:
        """Dimension of the plate of draws, left of all plates of the programs."""
        return -1 - self.nesting

    @property
    def global_latents(self) -> list[str]:
        """Names of the latents outside the plate ``"data"``."""
        return [name for name, latent in self.latents.items() if not latent.is_local]

    def enumerated(self, by: Literal["model", "guide"]) -> list[str]:
        """Names of the latents that a program enumerates."""
        return [name for name, latent in self.latents.items() if latent.enumerated == by]

    @property
    def guided(self) -> list[str]:
        """Names of the latents that the guide samples."""
        return [name for name, latent in self.latents.items() if latent.enumerated != "model"]

    def require_local(self, what: str = "no row has its own evidence") -> None:
        """Checks that there are no global latents, and no plates within a row that subsample their elements.

        Raises:
            ContractError: if there are, with the first one's name and what to do.
        """
        for name in self.global_latents:
            raise ContractError(
                f"the latent {name!r} lies outside the plate 'data' and belongs to all rows, so {what}: fix it in "
                f"both programs with pyro.condition(program, {{{name!r}: value}})"
            )
        for name in self.subsampled:
            raise ContractError(
                f"the plate {name!r} subsamples its elements, and the weights of a row need them all: run the programs "
                f"without subsampling"
            )

    def require_weights(self) -> None:
        """Checks that the guide's draws can be weighted, which needs a density of the latents.

        A guide may draw an auxiliary and set all latents to functions of it, as Pyro's autoguides do, with the density
        in ``Delta(..., log_density=...)``.

        Raises:
            ContractError: if they cannot, with the first such site and what to do.
        """
        if self.points and not self.extra:
            name = self.points[0]
            if self.latents[name].is_discrete:
                raise ContractError(
                    f"the guide sets the discrete latent {name!r} to one value, so all of its draws are the same and "
                    f"cannot be weighted: their bound is the elbo of evaluate"
                )
            raise ContractError(
                f"the guide sets {name!r} to a point and has no density there, so its draws cannot be weighted: let "
                f"it draw {name!r} from a distribution, or use ais_bounds(start='prior')"
            )
        if self.extra and len(self.points) < len(self.guided):
            raise ContractError(
                f"the guide draws the auxiliary {self.extra[0]!r}, which the model does not have, so its draws have "
                f"no density of the latents alone: let the model draw it too, or use ais_bounds(start='prior')"
            )

    def site(self, name: str | None = None) -> str:
        """The name of a latent: the one named, the only one, or ``"z"``.

        Raises:
            ValueError: if there is no such latent, or several and none is named.
        """
        local = [latent for latent in self.latents if self.latents[latent].is_local]
        if name is not None:
            if name not in self.latents:
                known = ", ".join(self.latents) or "none"
                raise ValueError(f"the model has no latent {name!r}: its latents are {known}")
            return name
        for only in (local, list(self.latents)):
            if "z" in only:
                return "z"
            if len(only) == 1:
                return only[0]
        if not self.latents:
            raise ValueError("the model has no latents")
        raise ValueError(f"the model has several latents, {', '.join(self.latents)}: name one of them with site=")

    def continuous_site(self, name: str | None = None) -> str:
        """The name of a continuous latent of each row, chosen as in :meth:`site`.

        Raises:
            ContractError: if it is discrete, or belongs to all rows.
        """
        name = self.site(name)
        if self.latents[name].is_discrete or not self.latents[name].is_local:
            kind = "is discrete" if self.latents[name].is_discrete else "belongs to all rows"
            raise ContractError(f"the latent {name!r} {kind}, so rows cannot be moved along it")
        return name


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace by name, except those of subsampling and ``pyro.deterministic``."""
    nodes: Any = prune_subsample_sites(trace).nodes
    sites = {name: site for name, site in nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in sites.items() if not site["infer"].get("_deterministic")}


def is_local(site: Any) -> bool:
    """Whether a site is in the plate ``"data"``."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def is_discrete(fn: Any) -> bool:
    """Whether a distribution's support is discrete; one without a known support counts as continuous."""
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return False


def innermost(fn: Any) -> Any:
    """A distribution without its wrappers for shape and mask."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return fn


def is_point(fn: Any) -> bool:
    """Whether a distribution is a Delta, inside any wrappers or transforms."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def is_unobserved_part(name: str, sites: Mapping[str, Any]) -> bool:
    """Whether a site has the values that ``pyro.sample(..., obs_mask=...)`` draws in place of missing ones.

    Only downstream sites depend on it, so a guide may leave it to the model, which then draws it from its own
    distribution: there q is p, and neither counts.
    """
    stem = name.removesuffix("_unobserved")
    return stem != name and f"{stem}_observed" in sites


def some(names: Sequence[str]) -> str:
    """The names, shortened if there are many.

    Example:
        >>> some(["a", "b"]), some([]), some(["x_0", "x_1", "x_2", "x_3", "x_4"])
        ('a, b', 'none', 'x_0, x_1, x_2 and 2 more')
    """
    return ", ".join(names) or "none" if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def vectorised_frames(site: Any) -> list[Any]:
    """The plates that a site is in, except loops."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


class Fixed(Messenger):
    """Gives latent sites these values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"] and not msg["done"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def nothing(*_: Any, **__: Any) -> None:
    """A program without sites."""


def under_particles(program: Program, num_particles: int | None, dim: int) -> Program:
    """The program under a plate of ``num_particles`` draws, or unchanged if that is None."""
    if num_particles is None or program is nothing:
        return program

    def repeated(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PARTICLES, num_particles, dim=dim):
            return program(*args, **kwargs)

    return repeated
