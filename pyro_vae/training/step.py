"""The objective of a batch and its gradient, as one function of tensors: what a training step computes."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae._support.constructors import tensors_on
from pyro_vae.data.rows import Rows
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.objectives import is_pyros
from pyro_vae.inference.sites import Draws, over_draws, run_pair
from pyro_vae.inference.structure import PROGRAM_ERRORS, ContractError, Structure, first_line
from pyro_vae.pair import Pair
from pyro_vae.programs.running import forked_random_state
from pyro_vae.training.arithmetic import Precision, bfloat16_products

__all__ = ["SUMS", "Gradients"]

SUMS = ("reconstruction", "kl", "auxiliary", "objective")  # over the rows of a step


class Gradients:
    """A pair's objective and its gradient.

    Takes the fraction of training that is done, a tensor, and the tensors of a reference to rows, in the order of
    ``names``. Returns the sums of :data:`SUMS` over those rows in nats, ``(4,)``, then minus the gradient of the mean
    objective for each of ``parameters``: zeros if there is none.

    Args:
        pair: The programs.
        parameters: The parameters of the gradient.
        rows: All rows.
        example: A reference to some of them.
        structure: Structure of the programs.
        objective: A function of draws, or one of Pyro's ELBO objects.
        precision: Precision of matrix products and convolutions; TF32 must be set by the caller.
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
        """Why a step cannot be lowered, if that is known in advance."""
        if is_pyros(self.objective):
            return f"Pyro runs {type(self.objective).__name__} on the programs"
        return None

    def __call__(self, progress: Tensor, *reference: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        named = self.rows.resolve(dict(zip(self.names, reference, strict=True)))
        with torch.enable_grad(), tensors_on(self.pair.device), bfloat16_products(self.precision):
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
                    f"draws.score_function(...), which the guide needs to learn there: use Elbo(...)"
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
        reconstruction, rate = (over_draws(term.detach()) for term in (draws.reconstruction, draws.rate))
        auxiliary = [over_draws(term.detach()) for term in draws.auxiliary.values()]
        return torch.stack(
            [
                (reconstruction + jacobian).sum(),
                rate.sum(),
                sum(auxiliary, torch.zeros_like(rate)).sum(),
                (objective + jacobian).sum(),
            ]
        )

    def _by_pyro(self, batch: Batch) -> tuple[Tensor, ...]:
        """The step of Pyro's own object; the reported terms come from separate draws, with other noise."""
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
        """The loss of Pyro's own object; leaves its gradients in the parameters."""
        model, guide = self.programs
        if hasattr(self.objective, "differentiable_loss"):
            loss = self.objective.differentiable_loss(model, guide, batch.x, **batch.arguments)
            loss.backward()
            return float(loss.detach())
        loss = self.objective.loss_and_grads(model, self._with_parameter(guide), batch.x, **batch.arguments)
        return float(loss[0] if isinstance(loss, tuple) else loss)  # wake-sleep returns the model's and the guide's

    def _with_parameter(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide with one ``pyro.param`` statement: Pyro only backpropagates if the programs have such statements.

        Modules called without ``pyro.module`` have none.
        """
        of_modules = [parameter for parameter in self.parameters if isinstance(parameter, torch.nn.Parameter)]

        def stating(*args: Any, **kwargs: Any) -> Any:
            for parameter in of_modules[:1]:
                pyro.param("a parameter of the pair's modules", parameter)
            return guide(*args, **kwargs)

        return stating
