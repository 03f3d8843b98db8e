r"""A pair of Pyro programs, :math:`p(x, z)` and :math:`q(z \mid x)`, and what one asks of it."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae._support.arrays import FileRows, as_tensor
from pyro_vae._support.ranges import Constraint, discrete, elementwise, inner_value
from pyro_vae.data.checks import check_rows, observed
from pyro_vae.inference import predictive
from pyro_vae.inference.imputation import draw_imputations
from pyro_vae.programs import evaluating, forked_random_state, site_distribution
from pyro_vae.transforms import Identity, Transform

__all__ = ["Pair"]

Array = Tensor | np.ndarray | FileRows
File = str | os.PathLike[str]

_ROWS = 1024  # brought to the model's units at a time


class Pair(nn.Module):
    r"""A model :math:`p(x, z)` and a guide :math:`q(z \mid x)`, both Pyro programs, and the data's transform.

    This is all that training, prediction and evaluation know. The programs may be modules or functions; what they must
    keep to is said at the top of :mod:`pyro_vae.programs`.

    Args:
        model: ``model(x=None, *, batch_size=None, **context)``.
        guide: ``guide(x, **context)``.
        transform: The user's units to the model's; by default the data are in the model's units.
        event_shape: Shape of one row, if data are to be checked for it.
        data_range: Constraint on one element in the model's units, likewise; by default it is the support of the
            distribution at site ``"x"``.
        missing: ``"nan"`` if NaN in the data is a missing entry. The programs are then given ``mask``, ``(N, *E)``,
            true where an entry is observed, and a value that suits the model in the place of each NaN. By default NaN
            is an error. A ``mask`` may also be given as a keyword argument, like any other.

    Rows ``x`` are tensors or arrays ``(N, *E)`` in the user's units, and so is what comes back. Keyword arguments
    (``**context``) go to the programs, rows first. A memory-mapped array is gone through in parts, but what comes back
    is in memory, and ``encode`` and ``interpolate``, whose results are of all rows at once, take their rows whole: of
    a large file give them a slice.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x=None, *, batch_size=None):
        ...     with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        ...         return pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x, scale).to_event(1))
        >>> Pair(model, guide).sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        transform: Transform | None = None,
        event_shape: Sequence[int] | None = None,
        data_range: Constraint | None = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        super().__init__()
        if missing not in (None, "nan"):
            raise ValueError(f"missing must be 'nan' or None, found {missing!r}")
        self.missing = missing
        self.model, self.guide = model, guide
        self.transform = Identity() if transform is None else transform
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.data_range = data_range

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the programs' parameters."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Device of the programs' parameters."""
        return next((p.device for p in self.parameters()), torch.get_default_device())

    def check(self, x: Array, name: str = "x", **context: Any) -> Tensor:
        """Returns ``x`` as a tensor, once every row is known to suit the model.

        Raises:
            ValueError: saying what was found, what was expected and what to do.
        """
        x = as_tensor(x)
        if x.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has hardly any arithmetic for these
            x = x.to(torch.int64)
        size_factor = context.get("size_factor")
        if size_factor is not None and not bool(((s := torch.as_tensor(size_factor)) > 0).all() and s.isfinite().all()):
            raise ValueError("size_factor must be a positive number for each row, for it multiplies the mean")
        if self.event_shape is None or self.data_range is None:
            p_x = self._any_observation(context)
            self.event_shape = tuple(p_x.event_shape) if self.event_shape is None else self.event_shape
            support: Any = p_x.support
            self.data_range = elementwise(support) if self.data_range is None else self.data_range
        check_rows(
            x,
            event_shape=self.event_shape,
            data_range=self.data_range,
            transform=self.transform,
            mask=self._mask(x, context),
            missing=self.missing is not None,
            dtype=self.dtype,
            device=self.device,
            name=name,
        )
        return x

    def observed(self, x: Tensor, context: Mapping[str, Any]) -> Tensor | None:
        """True where an entry of rows ``(N, *E)`` is observed; None where all are."""
        return observed(x, self._mask(x, context), missing=self.missing is not None)

    def _mask(self, x: Tensor, context: Mapping[str, Any]) -> Tensor | None:
        mask = context.get("mask")
        mask = None if mask is None else torch.as_tensor(mask, dtype=torch.bool, device=x.device)
        if mask is not None and mask.shape != x.shape:
            raise ValueError(f"the mask has shape {tuple(mask.shape)}, expected one for each entry of {tuple(x.shape)}")
        return mask

    def _any_observation(self, context: dict[str, Any]) -> TorchDistribution:
        """The distribution of one observed row at some z ~ p(z), for its shape and support."""
        first = {key: torch.as_tensor(value)[:1].to(self.device) for key, value in context.items()}
        with forked_random_state(self.device), evaluating(self.model):
            return site_distribution(self.model, "x", batch_size=1, **first)

    def prepare(self, x: Tensor, context: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any], Tensor]:
        """Checked rows as the programs take them.

        Args:
            x: Rows ``(N, *E)`` in the user's units.
            context: Keyword arguments of the programs, rows first.

        Returns:
            The rows in the model's units, on its device and in its type; the keyword arguments there too, with a
            ``mask`` where entries are missing; and for each row the logarithm of the transform's Jacobian, ``(N,)``,
            over its observed entries that have a density.
        """
        x = x.to(device=self.device, dtype=self.dtype)
        context = {name: torch.as_tensor(value).to(self.device) for name, value in context.items()}
        mask = self.observed(x, context)
        if mask is not None:
            context["mask"] = mask
            x = torch.where(mask, x, self._filling(self.transform.domain))
        y, log_jacobian = self.transform.with_log_jacobian(x)
        has_mass = torch.as_tensor(False if self.data_range is None else discrete(self.data_range), device=y.device)
        counted = ~has_mass if mask is None else mask & ~has_mass
        if mask is not None and self.data_range is not None:
            y = torch.where(mask, y, self._filling(self.data_range))
        return y, context, torch.where(counted, log_jacobian, 0.0).reshape(len(y), -1).sum(-1)

    def _filling(self, constraint: Constraint) -> Tensor:
        return torch.as_tensor(inner_value(elementwise(constraint)), dtype=self.dtype, device=self.device)

    def to_model_units(self, x: Array) -> Tensor:
        """Rows in the user's units as the programs take them: on their device, in their type, transformed."""
        return self.prepare(as_tensor(x), {})[0]

    def _checked(self, x: Array, context: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return self.prepare(self.check(x, **context), context)[:2]

    def encode(self, x: Array, **context: Any) -> TorchDistribution:
        r"""The approximate posterior :math:`q(z \mid x)` of each row: batch ``(N,)``, event ``(L,)``.

        Without gradients; where they are needed, call the guide's own parts.
        """
        rows, context = self._checked(x, context)
        with evaluating(self.guide):
            return site_distribution(self.guide, "z", rows, **context)

    def decode(self, z: Tensor, **context: Any) -> TorchDistribution:
        r"""The likelihood :math:`p(x \mid z)` at latents ``(N, L)``, in the model's units: batch ``(N,)``, event ``E``.

        Without gradients; where they are needed, call the model's own parts.
        """
        z = z.to(device=self.device, dtype=self.dtype)
        program = poutine.condition(self.model, {"z": z})
        with evaluating(self.model):
            return site_distribution(program, "x", batch_size=len(z), **context)

    def _chunk_shape(self, context: dict[str, Any]) -> tuple[int, int]:
        shape = self._any_observation(context).event_shape if self.event_shape is None else self.event_shape
        return predictive.chunk_shape(math.prod(shape))

    @overload
    def sample(
        self, num_samples: int, *, mean: bool = ..., out: None = ..., progress: bool = ..., **context: Any
    ) -> Tensor: ...

    @overload
    def sample(
        self, num_samples: int, *, mean: bool = ..., out: File, progress: bool = ..., **context: Any
    ) -> np.memmap: ...

    def sample(
        self, num_samples: int, *, mean: bool = False, out: File | None = None, progress: bool = False, **context: Any
    ) -> Tensor | np.memmap:
        r"""Draws new rows :math:`x \sim p(x)`, ``(num_samples, *E)``.

        Args:
            num_samples: Number of rows.
            mean: Return :math:`E[x \mid z]` at :math:`z \sim p(z)` instead: smoother, but not draws from the model.
            out: A ``.npy`` file to write the same rows to some megabytes at a time, however many; it appears once it
                is whole, and comes back memory-mapped, to be read only.
            progress: Show a progress bar.
            context: Keyword arguments of the model, ``num_samples`` rows each.

        Raises:
            ValueError: if ``num_samples`` is below 1, or the file cannot be written there.
        """
        return predictive.draw_prior_predictive(
            self.model,
            num_samples,
            mean=mean,
            context=context,
            finish=self.transform.inverse,
            shape=self._chunk_shape(context),
            out=out,
            progress=progress,
        )

    @overload
    def posterior_predictive(
        self,
        x: Array,
        num_samples: int = ...,
        *,
        mean: bool = ...,
        out: None = ...,
        progress: bool = ...,
        **context: Any,
    ) -> Tensor: ...

    @overload
    def posterior_predictive(
        self, x: Array, num_samples: int = ..., *, mean: bool = ..., out: File, progress: bool = ..., **context: Any
    ) -> np.memmap: ...

    def posterior_predictive(
        self,
        x: Array,
        num_samples: int = 1,
        *,
        mean: bool = False,
        out: File | None = None,
        progress: bool = False,
        **context: Any,
    ) -> Tensor | np.memmap:
        r"""Draws new data like each row, :math:`z \sim q(z \mid x),\ x' \sim p(x \mid z)`: ``(num_samples, N, *E)``.

        Args:
            x: Rows ``(N, *E)``.
            num_samples: Draws for each row.
            mean: Return :math:`E[x' \mid z]` for each draw of z instead.
            out: A ``.npy`` file to write the same draws to some megabytes at a time, as in :meth:`sample`.
            progress: Show a progress bar.
            context: Keyword arguments of both programs, rows first.

        Raises:
            ValueError: if rows or arguments do not suit the model, or the file cannot be written there.
        """
        runs, rows_at_once = self._chunk_shape(context)

        def draw(rows: Tensor, given: dict[str, Any]) -> Any:
            return predictive.draw_posterior_predictive(
                self.model,
                self.guide,
                rows,
                num_samples,
                mean=mean,
                context=given,
                finish=self.transform.inverse,
                chunk_size=min(1024, runs * rows_at_once),
                out=out,
                progress=progress,
            )

        if out is not None:  # a file is written from end to end, so the rows come whole
            return draw(*self._checked(x, context))
        return self._in_parts(self.check(x, **context), context, draw)

    def reconstruct(self, x: Array, **context: Any) -> Tensor:
        r"""The mean :math:`E[x' \mid z]` at the mean of :math:`q(z \mid x)`, one for each row: ``(N, *E)``."""

        def means(rows: Tensor, given: dict[str, Any]) -> Tensor:
            with evaluating(self.guide):
                z = site_distribution(self.guide, "z", rows, **given).mean
            return self.mean_at(z, **{name: value for name, value in given.items() if name != "mask"})[None]

        return self._in_parts(self.check(x, **context), context, means)[0]

    def impute(self, x: Array, num_samples: int = 1, *, num_particles: int = 100, **context: Any) -> Tensor:
        r"""Draws the missing entries of each row given its observed ones: ``(num_samples, N, *E)``.

        .. math:: z \sim p(z \mid x_\text{obs}),\ x_\text{mis} \sim p(x_\text{mis} \mid z)

        by importance resampling from the guide, see :func:`pyro_vae.inference.imputation.draw_imputations`: right for
        the model, and not only for the guide, as ``num_particles`` grows. Observed entries come back as they are.

        Args:
            x: Rows ``(N, *E)`` with NaN where an entry is missing.
            num_samples: Draws for each row.
            num_particles: Draws from the guide to choose from.
            context: Keyword arguments of both programs, rows first.
        """
        x = self.check(x, **context)
        if self.missing is None and "mask" not in context:
            raise ValueError("nothing says what is missing: build the model with missing='nan', or give a mask")
        if self.observed(x[:1], {name: value[:1] for name, value in context.items()}) is None:
            raise ValueError(f"no entry of {x.dtype} rows can be missing: give numbers with NaN, or a mask")

        def draw(rows: Tensor, given: dict[str, Any]) -> Tensor:
            return draw_imputations(
                self.model,
                self.guide,
                rows,
                num_samples,
                context=given,
                num_particles=num_particles,
                finish=self.transform.inverse,
            )

        draws = self._in_parts(x, context, draw)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            here = x[rows].to(device=draws.device, dtype=draws.dtype)
            seen = self.observed(here, predictive.rows_of(context, start, start + _ROWS))
            assert seen is not None
            draws[:, rows] = torch.where(seen, here, draws[:, rows])
        return draws

    def _in_parts(
        self, x: Tensor, context: Mapping[str, Any], draw: Callable[[Tensor, dict[str, Any]], Tensor]
    ) -> Tensor:
        """What ``draw`` makes of prepared rows, ``(S, N, ...)``, so many rows at a time that memory stays flat."""
        out: Any = None
        for start in range(0, len(x), _ROWS):
            here = predictive.rows_of(context, start, start + _ROWS)
            part = draw(*self.prepare(x[start : start + _ROWS], here)[:2])
            if len(x) <= _ROWS:
                return part
            if out is None:
                out = part.new_empty(len(part), len(x), *part.shape[2:])
            out[:, start : start + _ROWS] = part
        return out

    def interpolate(
        self,
        a: Array,
        b: Array,
        steps: int = 9,
        *,
        path: Literal["linear", "spherical"] = "linear",
        **context: Any,
    ) -> Tensor:
        r"""Means :math:`E[x \mid z]` on the way from rows ``a`` to rows ``b``: ``(steps, N, *E)``.

        Both are encoded to the mean of :math:`q(z \mid x)`; the way is a straight line or an arc between those.
        """
        ends = self.encode(a, **context).mean, self.encode(b, **context).mean
        if ends[0].shape != ends[1].shape:
            raise ValueError(f"a has {len(ends[0])} rows and b has {len(ends[1])}: give as many of each")
        latents = predictive.interpolate_latents(*ends, steps, path=path)
        return torch.stack([self.mean_at(z, **context) for z in latents])

    def mean_at(self, z: Tensor, **context: Any) -> Tensor:
        r"""The mean :math:`E[x \mid z]` at latents ``(N, L)``: ``(N, *E)``.

        It is the transform's way back applied to the likelihood's mean, which is exact where that way is affine.
        """
        latents = {"z": z.to(device=self.device, dtype=self.dtype)[None]}
        means = predictive.predict_from_latents(self.model, latents, len(z), mean=True, context=context)
        return self.transform.inverse(means[0])
