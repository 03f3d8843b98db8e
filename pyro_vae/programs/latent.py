r"""The standard Pyro programs: :math:`p(z)\,p(x \mid z)` and :math:`q(z \mid x)`."""

import itertools
import weakref
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae._support.names import check_taken
from pyro_vae.priors import Prior
from pyro_vae.programs.parts import Decoder, Encoder, batch_of

__all__ = ["GenerativeProgram", "Guide", "InferenceProgram", "Model"]

# Pyro's parameter store keeps the first tensor it sees under a name, so a second model with the same name would
# silently not train. Each object gets one name; a copy is another object.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def _register(module: nn.Module) -> None:
    name = _names.setdefault(module, f"{type(module).__name__.lower()}_{next(_numbers)}")
    pyro.module(name, module)


class GenerativeProgram(nn.Module):
    r"""Base class of programs :math:`p(z)\,p(x \mid z)` that end in a decoder; subclasses add the latents.

    To write a new one, let ``forward`` draw latents in ``self.plate(...)``, as :class:`Model` does.

    Args:
        decoder: Called with ``z``, returns :math:`p(x \mid z)`.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.decoder.event_shape

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, and those of the likelihood."""
        return ("mask", *self.decoder.arguments)

    def check_arguments(self, *, mask: Any = None, **arguments: Any) -> None:
        """Checks the mask's shape; the likelihood checks the values of its arguments."""
        if mask is not None:
            shape = tuple(torch.as_tensor(mask).shape)
            if shape[1:] != self.event_shape or not shape:
                raise ValueError(f"the mask has shape {shape}, expected that of the rows, {batch_of(self.event_shape)}")
        self.decoder.likelihood.check_arguments(**arguments)

    def plate(self, x: Tensor | None, batch_size: int | None, arguments: Mapping[str, Any]) -> Any:
        """The plate of the rows, or of ``batch_size`` new ones, after a check of the arguments."""
        check_taken(arguments, self.arguments, "the model")
        rows = batch_size if x is None else len(x)
        if rows is None:
            raise ValueError("the model needs rows x, or batch_size=n to draw n new ones")
        _register(self)
        return pyro.plate("data", rows, dim=-1)


class InferenceProgram(nn.Module):
    r"""Base class of programs :math:`q(z \mid x)` that start with an encoder; subclasses add the latents.

    Args:
        encoder: A module that names the keyword ``arguments`` that it takes in addition to ``x`` and ``mask``.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, and those of the encoding."""
        return ("mask", *self.encoder.arguments)

    def plate(self, x: Tensor, arguments: Mapping[str, Any]) -> Any:
        """The plate of the rows, after a check of the arguments."""
        check_taken(arguments, self.arguments, "the guide")
        _register(self)
        return pyro.plate("data", len(x), dim=-1)


class Model(GenerativeProgram):
    r"""The generative program :math:`p(z)\,p(x \mid z)`.

    Args:
        prior: Called without arguments, returns :math:`p(z)`.
        decoder: Called with ``z``, returns :math:`p(x \mid z)`.
    """

    def __init__(self, prior: Prior, decoder: Decoder) -> None:
        super().__init__(decoder)
        self.prior = prior

    def forward(
        self, x: Tensor | None = None, *, batch_size: int | None = None, mask: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``x`` in the model's units, or forward for ``batch_size`` new rows.

        ``mask`` is true where an entry is observed; other keyword arguments are the likelihood's.
        """
        with self.plate(x, batch_size, arguments):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decoder(z, x, mask, **arguments), obs=x)


class Guide(InferenceProgram):
    r"""The inference program :math:`q(z \mid x)`.

    Args:
        encoder: Called with ``x``, returns :math:`q(z \mid x)`.
    """

    encoder: Encoder

    def forward(self, x: Tensor, *, mask: Tensor | None = None, **arguments: Any) -> Tensor:
        """Runs the program on rows ``x`` in the model's units; ``mask`` is true where an entry is observed."""
        with self.plate(x, arguments):
            return pyro.sample("z", self.encoder(x, mask, **arguments), infer=self.encoder.posterior.infer)
