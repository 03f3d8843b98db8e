"""The density of some entries of a row, under a model that takes no mask."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.inference.predictive import rows_first
from pyro_vae.inference.structure import ContractError, innermost
from pyro_vae.programs.arguments import accepted

__all__ = ["leaving_out_gaps"]

Program = Callable[..., Any]


def leaving_out_gaps(model: Program) -> Program:
    r"""Returns a model that takes ``mask``, true where an entry is observed, and ignores the other entries.

    A model that takes ``mask`` is returned unchanged. For any other, the likelihood at ``"x"`` must factorise over
    entries, :math:`p(x \mid z) = \prod_d p(x_d \mid z)`, or over groups of entries that are observed together. Then the
    density of the observed entries is the product of their factors.

    Raises:
        ContractError: when it runs, if the likelihood does not factorise, or does not describe the rows' entries.

    Example:
        >>> import pyro, torch
        >>> def model(x=None, *, batch_size=None):
        ...     with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        ...         return pyro.sample("x", dist.Normal(torch.zeros(3), 1).to_event(1), obs=x)
        >>> x, mask = torch.tensor([[0.0, 9.0, 0.0]]), torch.tensor([[True, False, True]])
        >>> trace = pyro.poutine.trace(leaving_out_gaps(model)).get_trace(x, mask=mask)
        >>> round(float(trace.log_prob_sum()), 3)
        -1.838
    """
    names = accepted(model)
    if names is not None and "mask" in names:
        return model

    def program(x: Tensor | None = None, *, mask: Tensor | None = None, **arguments: Any) -> Any:
        if names is None and mask is not None:
            arguments["mask"] = mask  # it takes any argument, and may use it
        if x is None or mask is None:
            return model(x, **arguments)
        with _OfObserved(mask):
            return model(x, **arguments)

    if names is not None:
        program.arguments = (*names, "mask")  # pyright: ignore[reportFunctionMemberAccess]
    return program


class _OfObserved(Messenger):
    """Gives the site ``"x"`` the density of its observed entries alone."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "x" and msg["is_observed"]:
            msg["fn"] = _of_entries(msg["fn"], _in_site(self.mask, msg))


def _in_site(mask: Tensor, site: Any) -> Tensor:
    """The mask ``(N, *E)`` in the shape of a site's value."""
    value = site["value"]
    place = rows_first(site, torch.arange(value.numel(), device=value.device).reshape(value.shape))
    if place.numel() != mask.numel() or len(place) != len(mask):
        raise ContractError(
            f"the value observed at 'x' has shape {tuple(value.shape)} and the rows {tuple(mask.shape)}, so no entry "
            f"can be ignored: observe the rows unchanged, or let the model take their mask"
        )
    found = torch.empty_like(mask.reshape(-1))
    found[place.reshape(-1)] = mask.reshape(-1)
    return found.reshape(value.shape)


def _of_entries(fn: Any, mask: Tensor) -> Any:
    """The distribution without the entries where ``mask``, in the shape of a value, is false."""
    if isinstance(fn, dist.Independent):
        return _of_entries(fn.base_dist, mask).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return _of_entries(fn.base_dist, mask).mask(fn._mask)
    if fn.event_dim == 0:
        return fn.mask(mask)
    events = mask.flatten(-fn.event_dim)
    if bool((events.any(-1) != events.all(-1)).any()):
        raise ContractError(
            f"the {type(innermost(fn)).__name__} at 'x' describes {tuple(fn.event_shape)} entries jointly, and some "
            f"are missing: use a likelihood that factorises over entries, such as Normal(...).to_event(1), or a model "
            f"that takes their mask"
        )
    return fn.mask(events.all(-1))
