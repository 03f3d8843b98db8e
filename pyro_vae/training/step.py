"""The ELBO of a batch and its gradient, as one function of tensors: what a training step computes."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyro_vae.data.rows import Rows
from pyro_vae.inference.objectives import KlEstimate, elbo_terms
from pyro_vae.pair import Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["Gradients", "Precision", "has_bfloat16", "precision_in_force"]

Precision = Literal["full", "tf32", "bfloat16"]


class Gradients:
    """A pair's ELBO and its gradient.

    Called with the weight of the KL and the tensors of a reference to rows, in the order of ``names``. Returns the sums
    over those rows of reconstruction and KL in nats, ``(2,)``, and then minus the gradient of the mean ELBO for each of
    ``parameters``: zeros where there is none.

    Args:
        pair: The programs.
        parameters: What to take the gradient by.
        rows: All rows.
        example: A reference to some of them.
        kl: How the KL is estimated, see :func:`~pyro_vae.inference.objectives.elbo_terms`.
        num_particles: Draws of the guide for each row.
        precision: Of matrix products and convolutions.
    """

    def __init__(
        self,
        pair: Pair,
        parameters: Mapping[str, Tensor],
        rows: Rows,
        example: Mapping[str, Tensor],
        *,
        kl: KlEstimate = "sampled",
        num_particles: int = 1,
        precision: Precision = "full",
    ) -> None:
        self.pair, self.rows, self.names = pair, rows, tuple(example)
        self.parameters = list(parameters.values())
        self.kl: KlEstimate = kl
        self.precision: Precision = precision
        self.num_particles = num_particles if num_particles > 1 else None
        self.particle_dim = -2 if self.num_particles is None else _left_of_all_plates(pair, rows.resolve(example))
        self.closed_form: tuple[str, ...] = ()

    def __call__(self, kl_weight: Tensor, *reference: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        named = self.rows.resolve(dict(zip(self.names, reference, strict=True)))
        with torch.enable_grad(), precision_in_force(self.precision):
            x, context, log_jacobian = self.pair.prepare(named.pop("x"), named)
            terms = elbo_terms(
                self.pair.model,
                self.pair.guide,
                x,
                context,
                kl_weight=kl_weight,
                num_rows=self.rows.num_rows,
                kl=self.kl,
                num_particles=self.num_particles,
                particle_dim=self.particle_dim,
            )
            gradients = torch.autograd.grad(
                -terms.surrogate, self.parameters, allow_unused=True, materialize_grads=True
            )
        self.closed_form = terms.closed_form
        reconstruction, rate = (term.reshape(-1, len(x)).mean(0) for term in (terms.reconstruction, terms.kl))
        return (torch.stack([(reconstruction + log_jacobian).sum(), rate.sum()]), *gradients)


def _left_of_all_plates(pair: Pair, batch: dict[str, Tensor]) -> int:
    """The first dimension from the right that no plate of the programs has."""
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        x, context, _ = pair.prepare(batch.pop("x"), batch)
        guide = poutine.trace(pair.guide).get_trace(x, **context)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(x, **context)
    sites = [site for trace in (guide, model) for site in trace.nodes.values() if site["type"] == "sample"]
    return min((f.dim or 0 for site in sites for f in site["cond_indep_stack"] if f.vectorized), default=0) - 1


_PRODUCTS = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    Tensor.mm,
    Tensor.bmm,
}


class _Bfloat16Products(TorchFunctionMode):
    """Takes matrix products and convolutions of float32 in bfloat16 and gives float32, as all else stays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            out = func(*args, **(kwargs or {}))
        return out.float() if out.dtype == torch.bfloat16 else out


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; a CPU without such instructions takes many times as long for it."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextlib.contextmanager
def precision_in_force(precision: Precision) -> Iterator[None]:
    """Lets matrix products and convolutions be less precise than float32; distributions never are."""
    if precision == "bfloat16":
        with _Bfloat16Products():
            yield
    elif precision == "tf32":
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    else:
        yield
