r"""Transforms: the user's units to the model's, and back.

As in ``torch.distributions.transforms``, ``domain`` and ``codomain`` are constraints. Every transform is a module: the
numbers that it learns from data are buffers, saved with the model. It works in the type of the data, so float64 rows
keep their digits until they are in the model's units.

Transforms that draw, :class:`Binarize` and :class:`Dequantize`, draw again at every call in training mode. In
evaluation mode their noise is a function of the row alone: a row always maps to the same value, in any batch and order.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pyro_vae._support.arrays import LazyRows, in_chunks
from pyro_vae._support.configs import printed
from pyro_vae._support.moments import Moments
from pyro_vae._support.ranges import Constraint, constraints, interval, is_boolean, is_bounded, phrase, within
from pyro_vae._support.ranges import bounds as range_bounds

__all__ = [
    "Auto",
    "Binarize",
    "Compose",
    "Dequantize",
    "Identity",
    "Log1p",
    "Logit",
    "Scale",
    "Standardize",
    "Transform",
    "choose_transform",
]

# Training rows: in memory, in a file, or in parts as they are read.
TrainingRows = Tensor | LazyRows | Iterable[Tensor]


class Transform(nn.Module):
    """Base class: rows in the user's units to rows in the model's.

    To write a new one, define ``forward`` and ``inverse``. Also define the properties ``domain`` and ``codomain`` if
    they are not the real line, and the method ``log_abs_det_jacobian`` if it is not 0. Store each constructor argument
    under its own name.

    Shape:
        ``(N, *E)`` both ways; ``inverse`` takes any number of batch dimensions.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Moves to another device as modules do, but keeps the type of buffers: the model's may be less precise."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @property
    def domain(self) -> Constraint:
        """The values of one element that the transform accepts, in the user's units."""
        return constraints.real

    @property
    def codomain(self) -> Constraint | None:
        """The values of one element that it yields, in the model's units; None if they depend on the data."""
        return constraints.real

    def extra_repr(self) -> str:
        """The constructor's arguments, for printing."""
        return printed(self)

    def forward(self, x: Tensor) -> Tensor:
        """The user's units to the model's."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def inverse(self, y: Tensor) -> Tensor:
        """The model's units back to the user's."""
        raise NotImplementedError(f"{type(self).__name__} must define inverse(y)")

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:
        """Logarithm of the derivative's absolute value for each element, ``(N, *E)``: every transform is elementwise.

        Its sum over a row's elements, added to a log-density in the model's units, gives the one in the user's units.
        """
        return x.new_zeros(()).expand_as(x)

    def with_log_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows in the model's units, and :meth:`log_abs_det_jacobian`, at the same draw if the transform draws."""
        return self(x), self.log_abs_det_jacobian(x)

    def fit(self, x_train: TrainingRows) -> Self:
        """Fits itself to the training rows, ``(N, *E)`` in the user's units; returns itself.

        They can come in parts, each of which is read once.
        """
        return self

    def settle(self, x_train: TrainingRows, data_range: Constraint) -> "Transform":
        """The transform to train with: itself, unless it is chosen from the training rows."""
        return self


class Identity(Transform):
    """For data that are already in the model's units."""

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


def _needs_float64(loc: Tensor, scale: Tensor) -> bool:
    """Whether float32 rounds values around ``loc`` by more than a thousandth of ``scale``."""
    return bool((loc.abs() * torch.finfo(torch.float32).eps > 1e-3 * scale).any())


class Scale(Transform):
    r"""Maps one interval affinely onto another, such as grey levels 0–255 onto [0, 1].

    If float32 cannot tell values of the interval apart, the inverse is in float64.

    .. math:: y = a + (b - a) \frac{x - \text{low}}{\text{high} - \text{low}}, \qquad
        \log\left|\det \frac{\partial y}{\partial x}\right| = D \log \frac{b - a}{\text{high} - \text{low}}

    Args:
        low: Lower end of the data's interval, in the user's units.
        high: Upper end of the data's interval.
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
        ends = torch.tensor([self.low, self.high], dtype=torch.float64)
        y = y if y.dtype == torch.float64 or not _needs_float64(ends, ends[1] - ends[0]) else y.double()
        return self.low + (self.high - self.low) * ((y - self.onto[0]) / (self.onto[1] - self.onto[0]))

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:  # noqa: D102
        slope = (self.onto[1] - self.onto[0]) / (self.high - self.low)
        return x.new_full((), math.log(slope)).expand_as(x)


class Standardize(Transform):
    r"""Subtracts the mean and divides by the standard deviation of each element, channel or column.

    .. math:: y_i = \frac{x_i - m_i}{s_i}, \qquad \log\left|\frac{\partial y_i}{\partial x_i}\right| = -\log s_i

    Fit it on the training rows only. NaN is ignored. A constant element keeps its scale. Mean and scale are float64,
    and used in the type of the rows. If float32 cannot tell the data apart, such as 1e6 ± 1e-3, the inverse is in
    float64.

    Args:
        event_shape: Shape of one row.
        per_channel: One mean and scale for each channel of images ``(C, H, W)``, not for each element.
        columns: For rows ``(D,)``, the columns to standardise; the others are left as they are. By default all.

    Example:
        >>> standardize = Standardize((2,)).fit(torch.tensor([[1.0, 5.0], [3.0, 9.0]]))
        >>> standardize(torch.tensor([[2.0, 9.0]]))
        tensor([[0., 1.]])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, event_shape: Sequence[int], *, per_channel: bool = False, columns: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.event_shape, self.per_channel = tuple(event_shape), per_channel
        if per_channel and len(self.event_shape) != 3:
            raise ValueError(f"per_channel=True is for images (C, H, W), found rows of shape {self.event_shape}")
        self.columns = None if columns is None else tuple(columns)
        if columns is not None:
            if len(self.event_shape) != 1:
                raise ValueError(f"columns are for tables, found rows of shape {self.event_shape}")
            wrong = [c for c in columns if not -self.event_shape[0] <= c < self.event_shape[0]]
            if wrong:
                raise ValueError(f"there is no column {wrong[0]} in rows of shape {self.event_shape}")
        shape = (self.event_shape[0], 1, 1) if per_channel else self.event_shape
        self.register_buffer("loc", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(shape, dtype=torch.float64))

    @property
    def codomain(self) -> Constraint | None:
        """The real line; unknown if some columns are left as they are."""
        return constraints.real if self.columns is None else None

    def fit(self, x_train: TrainingRows) -> Self:
        """Takes mean and standard deviation from the training rows ``(N, *event_shape)``; returns itself."""
        moments, shape = Moments(), torch.Size((0,))
        for rows in in_chunks(x_train):
            shape = rows.shape
            if len(rows) == 0 or tuple(shape[1:]) != self.event_shape:
                break
            moments.add(rows.movedim(1, -1).flatten(0, -2) if self.per_channel else rows)
        if len(shape) == 0 or shape[0] == 0 or tuple(shape[1:]) != self.event_shape:
            raise ValueError(f"expected rows of shape {self.event_shape}, found data of shape {tuple(shape)}")
        loc, varies = moments.mean, moments.varies
        if self.columns is not None:
            chosen = torch.zeros(self.event_shape, dtype=torch.bool, device=loc.device)
            chosen[list(self.columns)] = True
            loc, varies = torch.where(chosen, loc, 0.0), varies & chosen
        self.loc.copy_(loc.reshape(self.loc.shape))
        self.scale.copy_(torch.where(varies, moments.variance.sqrt(), 1.0).reshape(self.scale.shape))
        return self

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return (x - self.loc.to(x.dtype)) / self.scale.to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        y = y if y.dtype == torch.float64 or not _needs_float64(self.loc, self.scale) else y.double()
        return self.loc.to(y.dtype) + y * self.scale.to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:  # noqa: D102
        return -self.scale.log().to(x.dtype).expand_as(x)


class Logit(Transform):
    r"""Maps (0, 1) onto the real line, with a margin that keeps 0 and 1 finite.

    .. math:: y = \mathrm{logit}(u), \quad u = \alpha + (1 - 2 \alpha) x, \qquad
        \log\left|\frac{\partial y}{\partial x}\right| = \log(1 - 2 \alpha) - \log u - \log(1 - u)

    Source: Dinh et al., *Density Estimation Using Real NVP*, 2017.

    Args:
        margin: The margin :math:`\alpha`, 0 for none.

    Example:
        >>> Logit(margin=0.0)(torch.tensor([[0.5]]))
        tensor([[0.]])
    """

    def __init__(self, margin: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must be at least 0 and below 0.5, found {margin}")
        self.margin = margin

    @property
    def domain(self) -> Constraint:  # noqa: D102
        return constraints.unit_interval

    def _inside(self, x: Tensor) -> Tensor:
        return self.margin + (1 - 2 * self.margin) * x

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._inside(x).log() - self._inside(1 - x).log()

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return ((torch.sigmoid(y) - self.margin) / (1 - 2 * self.margin)).clamp(0, 1)

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:  # noqa: D102
        return math.log(1 - 2 * self.margin) - self._inside(x).log() - self._inside(1 - x).log()


class Log1p(Transform):
    r"""Maps nonnegative amounts to the logarithm of 1 + x.

    .. math:: y = \log(1 + x), \qquad \log\left|\frac{\partial y}{\partial x}\right| = -\log(1 + x)

    Example:
        >>> Log1p().inverse(Log1p()(torch.tensor([[3.0]])))
        tensor([[3.]])
    """

    @property
    def domain(self) -> Constraint:  # noqa: D102
        return constraints.nonnegative

    @property
    def codomain(self) -> Constraint:  # noqa: D102
        return constraints.nonnegative

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.log1p()

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return y.expm1()

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:  # noqa: D102
        return -x.log1p()


class Binarize(Transform):
    r"""Draws bits with the grey levels as probabilities, again each time a row is seen in training.

    .. math:: y_i \sim \mathrm{Bernoulli}\left(\frac{x_i - \text{low}}{\text{high} - \text{low}}\right)

    This is dynamic binarisation (Salakhutdinov & Murray, 2008; Burda et al., 2016). In evaluation mode a row always
    gets the same bits: they depend on the row alone. Bits at ``low`` and ``high`` pass unchanged. The evidence is then
    that of the bits: a probability, with no Jacobian. The inverse maps 0 to ``low`` and 1 to ``high``, so means come
    back as grey levels.

    Args:
        low: Grey level that is always 0.
        high: Grey level that is always 1.
        seed: If given, a row gets the same bits in training too, which depend only on the row and the seed.

    Example:
        >>> Binarize(0, 16)(torch.tensor([[0.0, 16.0]]))
        tensor([[0., 1.]])
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, seed: int | None = None) -> None:
        super().__init__()
        _check_interval(low, high)
        self.low, self.high, self.seed = float(low), float(high), seed

    @property
    def domain(self) -> Constraint:  # noqa: D102
        return interval(self.low, self.high)

    @property
    def codomain(self) -> Constraint:  # noqa: D102
        return constraints.boolean

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        probabilities = ((x - self.low) / (self.high - self.low)).clamp(0, 1)
        return (_noise(probabilities, self.seed, training=self.training) < probabilities).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return self.low + (self.high - self.low) * y


def _noise(x: Tensor, seed: int | None, *, training: bool) -> Tensor:
    """Numbers uniform on [0, 1) in the shape of ``x``: new ones in training, otherwise the row's own."""
    return _uniform_noise(x) if training and seed is None else _row_noise(x, seed or 0)


def _uniform_noise(x: Tensor) -> Tensor:
    """Uniform numbers in the shape of ``x``; on a CPU hashed from their positions, with keys from torch's generator.

    Hashing works on whole vectors. Torch's CPU generator makes one number after another, which costs as much as a layer
    of a network. On a GPU that generator is one kernel, while hashing needs one for each of its operations.
    """
    if not _is_hashed(x.device):
        return torch.rand_like(x)
    keys = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32, device=x.device)
    place = torch.arange(x.numel(), device=x.device).reshape(x.shape).to(torch.int32)  # wraps around beyond 2³¹
    return _hashed(place, keys[0], keys[1]).to(x.dtype) * 2.0**-24


def _is_hashed(device: torch.device) -> bool:
    return device.type == "cpu"


def _row_noise(x: Tensor, seed: int) -> Tensor:
    """Uniform numbers in the shape of ``x``, hashed from their positions with keys computed from each row.

    All arithmetic is in whole numbers, so they are the same on every device.
    """
    flat = (x.reshape(x.shape[0], -1).double() * 2**30).round().long()
    start = (seed * 0x9E3779B1 + 2**63) % 2**64 - 2**63
    place = _mix64(torch.arange(flat.shape[1], device=x.device) + start)
    total = _wrapping_sum(flat * (place | 1))
    row = _mix64(total + (total == 0))  # the hash of zero is zero
    keys = (row.to(torch.int32), (row >> 32).to(torch.int32))
    noise = _hashed(torch.arange(flat.shape[1], dtype=torch.int32, device=x.device), *keys)
    return (noise.to(x.dtype) * 2.0**-24).reshape(x.shape)


def _wrapping_sum(x: Tensor) -> Tensor:
    """Sums of 64-bit whole numbers modulo 2⁶⁴, ``(N, 1)``, in halves because some runtimes add them as floats."""
    low, high = ((part & (2**32 - 1)).sum(1, keepdim=True) for part in (x, x >> 32))
    return low + (high << 32)


def _hashed(place: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Pseudo-uniform 24-bit numbers from 32-bit positions and two keys (finaliser of MurmurHash3; Appleby, 2011)."""
    return _mix32(_mix32(place ^ first) ^ second) & (2**24 - 1)


def _mix32(x: Tensor) -> Tensor:
    """Scrambles 32-bit whole numbers."""
    x = (x ^ (x >> 16 & (2**16 - 1))) * -0x7A143595
    x = (x ^ (x >> 13 & (2**19 - 1))) * -0x3D4D51CB
    return x ^ (x >> 16 & (2**16 - 1))


def _mix64(x: Tensor) -> Tensor:
    """Scrambles 64-bit whole numbers (the finaliser of SplitMix64; Steele et al., 2014)."""
    x = (x ^ (x >> 30 & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (2**33 - 1))


class Dequantize(Transform):
    r"""Adds uniform noise on [0, 1) to whole numbers, drawn again each time a row is seen in training.

    .. math:: y = x + u, \quad u \sim \mathrm{Uniform}[0, 1)

    The expected log-density of y then bounds the log-probability of x from below (Theis et al., *A Note on the
    Evaluation of Generative Models*, 2016). It is the number reported in bits per dimension. In evaluation mode u
    depends on the row alone. The inverse rounds down.

    Args:
        num_levels: Number of levels; 256 for 8-bit data.

    Example:
        >>> y = Dequantize(256)(torch.tensor([[0.0, 255.0]]))
        >>> Dequantize(256).inverse(y)
        tensor([[  0., 255.]])
    """

    def __init__(self, num_levels: int = 256) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, found {num_levels}")
        self.num_levels = num_levels

    @property
    def domain(self) -> Constraint:  # noqa: D102
        return constraints.integer_interval(0, self.num_levels - 1)

    @property
    def codomain(self) -> Constraint:  # noqa: D102
        return interval(0, self.num_levels)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        return (x + _noise(x, None, training=self.training)).minimum(torch.nextafter(x + 1, x))

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return y.floor().clamp(0, self.num_levels - 1)


class Compose(Transform):
    """Applies transforms one after another, starting from the user's units.

    Args:
        parts: The transforms, in order.

    Example:
        >>> compose = Compose((Dequantize(256), Scale(0, 256)))
        >>> compose.inverse(compose(torch.tensor([[7.0]])))
        tensor([[7.]])
    """

    def __init__(self, parts: Sequence[Transform]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("Compose needs at least one transform")
        self._parts = nn.ModuleList(parts)
        for first, second in itertools.pairwise(self.parts):
            yielded = first.codomain
            if yielded is not None and not within(yielded, second.domain):
                raise ValueError(
                    f"{type(first).__name__} yields {phrase(yielded)}, but {type(second).__name__} takes "
                    f"{phrase(second.domain)}: choose bounds that agree, or another order"
                )

    @property
    def parts(self) -> tuple[Transform, ...]:
        """The transforms, in order."""
        return tuple(self._parts)  # pyright: ignore[reportReturnType]

    @property
    def domain(self) -> Constraint:  # noqa: D102
        return self.parts[0].domain

    @property
    def codomain(self) -> Constraint | None:  # noqa: D102
        return self.parts[-1].codomain

    def fit(self, x_train: TrainingRows) -> Self:
        """Fits each transform to the training rows as transformed by the ones before it.

        This iterates over the rows several times, so they must not be an iterator that can be used only once.
        """
        for number, part in enumerate(self.parts):
            part.fit(_through(self.parts[:number], x_train))
        return self

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for part in self.parts:
            x = part(x)
        return x

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        for part in reversed(self.parts):
            y = part.inverse(y)
        return y

    def log_abs_det_jacobian(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.with_log_jacobian(x)[1]

    def with_log_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        total = torch.zeros_like(x)
        for part in self.parts:
            x, log_jacobian = part.with_log_jacobian(x)
            total = total + log_jacobian
        return x, total


def _through(parts: Sequence[Transform], x: TrainingRows) -> Iterator[Tensor]:
    for rows in in_chunks(x):
        for part in parts:
            rows = part(rows)
        yield rows


class Auto(Transform):
    """Placeholder for the transform that :func:`choose_transform` chooses when training starts."""

    @property
    def codomain(self) -> Constraint | None:
        """Unknown until it is chosen."""
        return None

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        raise ValueError("the transform is not chosen yet: fit chooses it from the training rows")

    def inverse(self, y: Tensor) -> Tensor:  # noqa: D102
        return self(y)

    def settle(self, x_train: TrainingRows, data_range: Constraint) -> Transform:
        """Chooses the transform, and prints it and the reason."""
        chosen, why = choose_transform(x_train, data_range)
        print(f"transform: {chosen}, because {why}")
        return chosen


def _customary(dtype: torch.dtype, low: float, high: float) -> tuple[float, float] | None:
    """The conventional bounds of values of this type and range: 0–1, 0–255, 0–65535; None if there are none."""
    if low >= 0 and high <= 1:
        return (0.0, 1.0)
    return {torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0)}.get(dtype)  # other whole numbers may be counts


def _extent(chunks: Iterable[Tensor]) -> tuple[torch.dtype, float, float]:
    """Type, lowest and highest value; NaN is ignored."""
    dtype, low, high = torch.get_default_dtype(), math.inf, -math.inf
    for rows in chunks:
        dtype = rows.dtype
        seen = rows[~rows.isnan()] if rows.is_floating_point() else rows
        if seen.numel():
            seen = seen.int() if dtype in (torch.bool, torch.uint16) else seen  # torch has no min and max for these
            low, high = min(low, float(seen.min())), max(high, float(seen.max()))
    return dtype, low, high


def choose_transform(
    x_train: TrainingRows, data_range: Constraint, bounds: tuple[float, float] | None = None
) -> tuple[Transform, str]:
    """Chooses the transform that brings the data into a likelihood's range, from the training rows.

    Args:
        x_train: Training rows ``(N, *E)``, which can come in parts; NaN is ignored.
        data_range: The values that the likelihood describes.
        bounds: The lowest and highest value that the data can have, if known; by default the conventional bounds of
            such data, or, if there are none, the extremes of the training rows.

    Returns:
        The fitted transform, and the reason as a clause.

    Example:
        >>> choose_transform(torch.randint(0, 256, (9, 4)).to(torch.uint8), constraints.boolean)[0]
        Binarize(low=0.0, high=255.0, seed=None)
    """
    chunks = in_chunks(x_train)
    first = next(chunks)
    chunks = itertools.chain([first], chunks)
    if isinstance(data_range, constraints.stack):
        real = [i for i, column in enumerate(data_range.cseq) if column is constraints.real]
        if not real:
            return Identity(), "no column is a real number"
        standardize = Standardize(first.shape[1:], columns=real).fit(chunks)
        return standardize, f"of the columns with real numbers, {len(real)}"
    if data_range is constraints.real:
        per_channel = first.dim() == 4
        standardize = Standardize(first.shape[1:], per_channel=per_channel).fit(chunks)
        return standardize, f"the likelihood describes real numbers{', one scale for each channel' * per_channel}"
    if not is_bounded(data_range) or (data_range.is_discrete and not is_boolean(data_range)):
        return Identity(), f"the likelihood describes {phrase(data_range)} as they are"
    extent = _extent(chunks) if bounds is None else None
    found = bounds if extent is None else _customary(*extent)
    low, high = found or extent[1:]  # pyright: ignore[reportOptionalSubscript]
    where = f"the data lie between {low:g} and {high:g}{'' if found else ' in the training rows'}"
    if is_boolean(data_range):
        drawn = "drawn again each time in training, otherwise fixed for each row"
        return Binarize(low, high), f"{where}, and the likelihood describes bits, {drawn}"
    onto = range_bounds(data_range)
    if (low, high) == onto:
        return Identity(), f"{where}, which is the likelihood's range"
    return Scale(low, high, onto=onto), f"{where}, and the likelihood describes {phrase(data_range)}"
