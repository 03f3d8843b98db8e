"""Normalising flows from zuko: the supported kinds, by name."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from pyro_vae._support.names import lookup

__all__ = ["FlowKind", "make_flow"]

_WIDEST = 2**14  # so a damaged description does not use up memory

FlowKind = Literal["autoregressive", "coupling", "spline"]


def make_flow(kind: FlowKind, features: int, num_transforms: int, hidden_dims: Sequence[int], context: int = 0) -> Any:
    """A zuko flow over vectors of ``features`` numbers, given a vector of ``context`` numbers.

    - ``"autoregressive"``: masked affine (Papamakarios et al., 2017).
    - ``"coupling"``: affine couplings (Dinh et al., 2015), equally fast in both directions.
    - ``"spline"``: masked rational-quadratic splines (Durkan et al., 2019).

    Raises:
        ImportError: if zuko is not installed, with the command to install it.
        ValueError: if the kind is unknown.
    """
    lookup(kind, get_args(FlowKind), "flow")
    if num_transforms < 1:
        raise ValueError(f"num_transforms must be at least 1, found {num_transforms}")
    if max(features, context, *hidden_dims, 0) > _WIDEST:
        raise ValueError(f"a flow is at most {_WIDEST:,} wide, found {max(features, context, *hidden_dims, 0):,}")
    try:
        import zuko
    except ImportError as error:
        raise ImportError("flows need zuko: pip install 'pyro-vae[flows]'") from error
    common: dict[str, Any] = {"transforms": num_transforms, "hidden_features": tuple(hidden_dims), "context": context}
    passes = {"passes": 2} if kind == "coupling" and features > 1 else {}
    make = zuko.flows.NSF if kind == "spline" else zuko.flows.MAF
    with torch.device("cpu"):  # its masks are computed, even when a model is built on the device meta
        return make(features, **passes, **common)
