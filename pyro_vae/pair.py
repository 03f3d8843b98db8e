r"""A pair of Pyro programs, :math:`p(x, z)` and :math:`q(z \mid x)`, and what one asks of it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae import predictive
from pyro_vae.checks import check_rows
from pyro_vae.programs import evaluating, forked_random_state, site_distribution
from pyro_vae.ranges import Constraint
from pyro_vae.transforms import Identity, Transform

__all__ = ["Pair"]

Rows = Tensor | np.ndarray


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

    Rows ``x`` are tensors or arrays ``(N, *E)`` in the user's units, and so is what comes back. Keyword arguments
    (``**context``) go to the programs, rows first.

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
    ) -> None:
        super().__init__()
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

    def check(self, x: Rows, name: str = "x", **context: Any) -> Tensor:
        """Returns ``x`` as a tensor, once every row is known to suit the model.

        Raises:
            ValueError: saying what was found, what was expected and what to do.
        """
        x = torch.as_tensor(x)
        if x.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has hardly any arithmetic for these
            x = x.to(torch.int64)
        event_shape, data_range = self.event_shape, self.data_range
        if event_shape is None or data_range is None:
            p_x = self._any_observation(context)
            event_shape = p_x.event_shape if event_shape is None else event_shape
            data_range = p_x.support if data_range is None else data_range
        check_rows(
            x,
            event_shape=event_shape,
            data_range=data_range,
            transform=self.transform,
            dtype=self.dtype,
            device=self.device,
            name=name,
        )
        return x

    def _any_observation(self, context: dict[str, Any]) -> TorchDistribution:
        """The distribution of one observed row at some z ~ p(z), for its shape and support."""
        first = {key: torch.as_tensor(value)[:1].to(self.device) for key, value in context.items()}
        with forked_random_state(self.device), evaluating(self.model):
            return site_distribution(self.model, "x", batch_size=1, **first)

    def to_model_units(self, x: Tensor) -> Tensor:
        """Rows in the user's units as the programs take them: on their device, in their type, transformed."""
        return self.transform(x.to(device=self.device, dtype=self.dtype))

    def _rows(self, x: Rows, context: dict[str, Any]) -> Tensor:
        return self.to_model_units(self.check(x, **context))

    def encode(self, x: Rows, **context: Any) -> TorchDistribution:
        r"""The approximate posterior :math:`q(z \mid x)` of each row: batch ``(N,)``, event ``(L,)``.

        Without gradients; where they are needed, call the guide's own parts.
        """
        rows = self._rows(x, context)
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

    def sample(self, num_samples: int, *, mean: bool = False, **context: Any) -> Tensor:
        r"""Draws new rows :math:`x \sim p(x)`, ``(num_samples, *E)``.

        Args:
            num_samples: Number of rows.
            mean: Return :math:`E[x \mid z]` at :math:`z \sim p(z)` instead: smoother, but not draws from the model.
            context: Keyword arguments of the model, ``num_samples`` rows each.
        """
        return predictive.draw_prior_predictive(
            self.model, num_samples, mean=mean, context=context, finish=self.transform.inverse
        )

    def posterior_predictive(self, x: Rows, num_samples: int = 1, *, mean: bool = False, **context: Any) -> Tensor:
        r"""Draws new data like each row, :math:`z \sim q(z \mid x),\ x' \sim p(x \mid z)`: ``(num_samples, N, *E)``.

        Args:
            x: Rows ``(N, *E)``.
            num_samples: Draws for each row.
            mean: Return :math:`E[x' \mid z]` for each draw of z instead.
            context: Keyword arguments of both programs, rows first.
        """
        rows = self._rows(x, context)
        return predictive.draw_posterior_predictive(
            self.model, self.guide, rows, num_samples, mean=mean, context=context, finish=self.transform.inverse
        )

    def reconstruct(self, x: Rows, **context: Any) -> Tensor:
        r"""The mean :math:`E[x' \mid z]` at the mean of :math:`q(z \mid x)`, one for each row: ``(N, *E)``."""
        z = self.encode(x, **context).mean
        return self.mean_at(z, **context)

    def interpolate(
        self,
        a: Rows,
        b: Rows,
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
