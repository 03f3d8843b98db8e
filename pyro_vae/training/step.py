"""The objective of a batch and its gradient, as one function of tensors: what a training step computes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pyro_vae._support.devices import tensors_on
from pyro_vae.data.rows import Rows
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.objectives import is_pyros
from pyro_vae.inference.sites import Draws, run_pair
from pyro_vae.inference.structure import PROGRAM_ERRORS, ContractError, Structure, first_line
from pyro_vae.pair import Pair
from pyro_vae.programs.running import forked_random_state

__all__ = ["SUMS", "Gradients", "Precision", "has_bfloat16", "precision_in_force"]

Precision = Literal["full", "tf32", "bfloat16"]

SUMS = ("reconstruction", "kl", "auxiliary", "objective")  # over the rows of a step


class Gradients:
    """A pair's objective and its gradient.

    Called with the share of training that is done, a tensor, and the tensors of a reference to rows, in the order of
    ``names``. Returns the sums over those rows of :data:`SUMS` in nats, ``(4,)``, and then minus the gradient of the
    mean objective for each of ``parameters``: zeros where there is none.

    Args:
        pair: The programs.
        parameters: What to take the gradient by.
        rows: All rows.
        example: A reference to some of them.
        structure: What the programs are made of.
        objective: A function of draws, or an ELBO object of Pyro's.
        precision: Of matrix products and convolutions.
    """

    def __init__(
        self,
        pair: Pair,
        parameters: Mapping[str, Tensor],
        rows: Rows,
        example: Mapping[str, Tensor],
        structure: Structure,
        objective: Any,
        *,
        precision: Precision = "full",
    ) -> None:
        self.pair, self.rows, self.names = pair, rows, tuple(example)
        self.parameters = list(parameters.values())
        self.structure, self.objective = structure, objective
        self.precision: Precision = precision
        self.programs = pair.programs
        self.closed_form: tuple[str, ...] = ()

    @property
    def why_programs(self) -> str | None:
        """Why a step cannot be lowered, as far as that is known beforehand."""
        if is_pyros(self.objective):
            return f"{type(self.objective).__name__} is run by Pyro, on the programs"
        return None

    def __call__(self, progress: Tensor, *reference: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        named = self.rows.resolve(dict(zip(self.names, reference, strict=True)))
        with torch.enable_grad(), tensors_on(self.pair.device), precision_in_force(self.precision):
            batch = self.pair.prepare(named, redraw=True)
            if is_pyros(self.objective):
                return self._by_pyro(batch)
            draws = self._draws(batch)
            if hasattr(self.objective, "estimated"):
                draws = self.objective.estimated(draws)
            objective = self.objective(draws, progress)
            if sites := draws.without_score_function:
                raise ContractError(
                    f"draws at {sites[0]!r} cannot be differentiated through, and the objective does not add "
                    f"draws.score_function(...), without which the guide would not learn about them: use Elbo(...)"
                )
            gradients = torch.autograd.grad(
                -objective.mean(), self.parameters, allow_unused=True, materialize_grads=True
            )
        self.closed_form = draws.closed_form
        return (self._sums(draws, objective.expand(len(batch)).detach(), batch), *gradients)

    def _draws(self, batch: Batch) -> Draws:
        particles = getattr(self.objective, "num_particles", 1)
        return run_pair(
            *self.programs,
            batch,
            self.structure,
            num_particles=particles if particles > 1 else None,
            num_rows=self.rows.num_rows,
        )

    def _sums(self, draws: Draws, objective: Tensor, batch: Batch) -> Tensor:
        jacobian = batch.log_jacobian
        reconstruction, rate = (term.detach().mean(0) for term in (draws.reconstruction, draws.rate))
        auxiliary = [term.detach().mean(0) for term in draws.auxiliary.values()]
        return torch.stack(
            [
                (reconstruction + jacobian).sum(),
                rate.sum(),
                sum(auxiliary, torch.zeros_like(rate)).sum(),
                (objective + jacobian).sum(),
            ]
        )

    def _by_pyro(self, batch: Batch) -> tuple[Tensor, ...]:
        """The step of Pyro's own object; what is reported comes from draws of our own, with other noise."""
        for parameter in self.parameters:
            parameter.grad = None
        model, guide = self.programs
        try:
            loss = self._pyros_loss(batch)
        except PROGRAM_ERRORS as error:
            raise ContractError(
                f"{type(self.objective).__name__} fails on these programs: {first_line(error)}"
            ) from error
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad / len(batch) for p in self.parameters]
        objective = batch.x.new_full((len(batch),), -loss / len(batch))
        with torch.no_grad(), forked_random_state(self.pair.device):
            draws = run_pair(model, guide, batch, self.structure, num_rows=self.rows.num_rows)
        return (self._sums(draws, objective, batch), *gradients)

    def _pyros_loss(self, batch: Batch) -> float:
        """The loss of Pyro's own object; its gradients are in the parameters then."""
        model, guide = self.programs
        if hasattr(self.objective, "differentiable_loss"):
            loss = self.objective.differentiable_loss(model, guide, batch.x, **batch.arguments)
            loss.backward()
            return float(loss.detach())
        loss = self.objective.loss_and_grads(model, self._with_parameter(guide), batch.x, **batch.arguments)
        return float(loss[0] if isinstance(loss, tuple) else loss)  # wake-sleep has the guide's beside the model's

    def _with_parameter(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide with a statement of one parameter: Pyro goes backward only where the programs make such statements.

        Modules that are called without ``pyro.module`` make none.
        """
        of_modules = [parameter for parameter in self.parameters if isinstance(parameter, torch.nn.Parameter)]

        def stating(*args: Any, **kwargs: Any) -> Any:
            for parameter in of_modules[:1]:
                pyro.param("a parameter of the pair's modules", parameter)
            return guide(*args, **kwargs)

        return stating


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
