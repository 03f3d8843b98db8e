r"""Transforms: the user's units to the model's, and back.

As in ``torch.distributions.transforms``, ``domain`` and ``codomain`` are constraints. Every transform is a module: what
it learned from data are buffers, saved with the model.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from pyro_vae.configs import arguments
from pyro_vae.ranges import Constraint, constraints, interval

__all__ = ["Binarize", "Identity", "Scale", "Standardize", "Transform"]


class Transform(nn.Module):
    """Base class: rows in the user's units to rows in the model's.

    To write a new one, define ``forward``, ``inverse``, and where they are not the real line and 0 the properties
    ``domain`` and ``codomain`` and the method ``log_abs_det_jacobian``. Keep each constructor argument under its own
    name.

    Shape:
        ``(N, *E)`` both ways; ``inverse`` takes any number of batch dimensions.
    """

    @property
    def domain(self) -> Constraint:
        """The values of one element that the transform takes, in the user's units."""
        return constraints.real

    @property
    def codomain(self) -> Constraint | None:
        """The values of one element that it yields, in the model's units; None where that depends on the data."""
        return constraints.real

    def extra_repr(self) -> str:
        """The constructor's arguments, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in arguments(self).items())

    def forward(self, x: Tensor) -> Tensor:
        """The user's units to the model's."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def inverse(self, y: Tensor) -> Tensor:
        """The model's units back to the user's."""
        raise NotImplementedError(f"{type(self).__name__} must define inverse(y)")

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:
        """Logarithm of the absolute determinant of dy/dx for each row, ``(N,)``.

        Added to a log-density in the model's units it gives the log-density in the user's.
        """
        return x.new_zeros(len(x))


class Identity(Transform):
    """Data that already are in the model's units."""

    @property
    def codomain(self) -> Constraint | None:
        """Unknown until the data are seen."""
        return None

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return y


def _check_interval(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"an interval needs two finite bounds, the lower one first; found {low:g} and {high:g}")


class Scale(Transform):
    r"""Maps one interval affinely onto another, such as grey levels 0–255 onto [0, 1].

    .. math:: y = a + (b - a) \frac{x - \text{low}}{\text{high} - \text{low}}, \qquad
        \log\left|\det \frac{\partial y}{\partial x}\right| = D \log \frac{b - a}{\text{high} - \text{low}}

    Args:
        low: Lower end of the data's interval, in the user's units.
        high: Upper end of it.
        onto: The interval :math:`[a, b]` in the model's units: ``(0, 1)`` for a sigmoid link, ``(-1, 1)`` for tanh.

    Example:
        >>> Scale(0, 255, onto=(-1, 1))(torch.tensor([[0.0, 127.5, 255.0]]))
        tensor([[-1.,  0.,  1.]])
    """

    def __init__(self, low: float = 0.0, high: float = 255.0, onto: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        _check_interval(low, high)
        _check_interval(*onto)
        self.low, self.high, self.onto = float(low), float(high), (float(onto[0]), float(onto[1]))

    @property
    def domain(self) -> Constraint:  # noqa: D102
        return interval(self.low, self.high)

    @property
    def codomain(self) -> Constraint:  # noqa: D102
        return interval(*self.onto)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.onto[0] + (self.onto[1] - self.onto[0]) * ((x - self.low) / (self.high - self.low))
        return y.clamp(*self.onto)  # against rounding; the data lie in the domain

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return self.low + (self.high - self.low) * ((y - self.onto[0]) / (self.onto[1] - self.onto[0]))

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:  # noqa: D102
        slope = (self.onto[1] - self.onto[0]) / (self.high - self.low)
        return x.new_full((len(x),), math.prod(x.shape[1:]) * math.log(slope))


class Standardize(Transform):
    r"""Subtracts the mean and divides by the standard deviation of each element.

    .. math:: y_i = \frac{x_i - m_i}{s_i}, \qquad
        \log\left|\det \frac{\partial y}{\partial x}\right| = -\sum_i \log s_i

    Fit it on the rows that the model is trained on, and on no others. An element that never varies keeps its scale.

    Args:
        event_shape: Shape of one row.

    Example:
        >>> standardize = Standardize((2,)).fit(torch.tensor([[1.0, 5.0], [3.0, 9.0]]))
        >>> standardize(torch.tensor([[2.0, 9.0]]))
        tensor([[0., 1.]])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("loc", torch.zeros(self.event_shape))
        self.register_buffer("scale", torch.ones(self.event_shape))

    def fit(self, x_train: Tensor) -> Self:
        """Takes mean and standard deviation from the training rows ``(N, *event_shape)``; returns itself."""
        if len(x_train) == 0 or tuple(x_train.shape[1:]) != self.event_shape:
            raise ValueError(f"expected rows of shape {self.event_shape}, found data of shape {tuple(x_train.shape)}")
        x_train = x_train.double()
        varies = x_train.amax(0) > x_train.amin(0)
        self.loc.copy_(x_train.mean(0))
        self.scale.copy_(torch.where(varies, x_train.std(0, correction=0), 1.0))
        return self

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return (x - self.loc) / self.scale

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return self.loc + y * self.scale

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:  # noqa: D102
        return -self.scale.log().sum().expand(len(x))


class Binarize(Transform):
    r"""Draws bits with the grey levels as probabilities, anew each time a row is seen.

    .. math:: y_i \sim \mathrm{Bernoulli}\left(\frac{x_i - \text{low}}{\text{high} - \text{low}}\right)

    This is dynamic binarisation (Salakhutdinov & Murray, 2008; Burda et al., 2016). Bits at ``low`` and ``high`` pass
    unchanged. Evidence is then that of the bits, a probability, which has no Jacobian. The way back puts
    0 at ``low`` and 1 at ``high``, so means come back as grey levels.

    Args:
        low: Grey level that is always 0.
        high: Grey level that is always 1.

    Example:
        >>> Binarize(0, 16)(torch.tensor([[0.0, 16.0]]))
        tensor([[0., 1.]])
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        _check_interval(low, high)
        self.low, self.high = float(low), float(high)

    @property
    def domain(self) -> Constraint:  # noqa: D102
        return interval(self.low, self.high)

    @property
    def codomain(self) -> Constraint:  # noqa: D102
        return constraints.boolean

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.bernoulli(((x - self.low) / (self.high - self.low)).clamp(0, 1))

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return self.low + (self.high - self.low) * y
