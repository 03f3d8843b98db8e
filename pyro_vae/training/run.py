"""A training run: its data, its optimiser and its progress."""

import functools
import itertools
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_vae._support import progress
from pyro_vae._support.devices import current, get_random_state, resolve_device, set_random_state
from pyro_vae.data.rows import Inputs, Rows, as_rows
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.inspection import LOOKED_AT
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import forked_random_state, local_parameters
from pyro_vae.training import parallel
from pyro_vae.training.arithmetic import has_bfloat16, in_force, repeatable
from pyro_vae.training.averaging import WeightAverage
from pyro_vae.training.checkpoints import (
    Checkpoint,
    numbers_of,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
    write_checkpoint,
)
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.training.execution import Epoch, Execution
from pyro_vae.training.parameters import STORE, trainable
from pyro_vae.training.settings import Settings
from pyro_vae.training.step import Gradients

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run"]

_TRAINING_ROWS, _VALIDATION_ROWS = "training rows", "validation rows"

_BATCH_SIZE = 128
_STEPS_BETWEEN_AGREEMENTS = 10  # between ranks, on whether to stop; each waits for the GPU


@contextmanager
def _seeded(state: dict[str, Any] | None, seed: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Sets every generator that a program may use to a state, or seeds it, and restores the caller's at the end.

    Afterwards, the yielded mapping has the state to continue from.
    """
    before, after = get_rng_state(), {}
    with forked_random_state(device):
        if state is None:
            pyro.set_rng_seed(seed)
        else:
            set_rng_state(state["pyro"])
            set_random_state(state["torch"], device)
        try:
            yield after
        finally:
            after |= {"pyro": get_rng_state(), "torch": get_random_state(device)}
            set_rng_state(before)


class Run:
    """A training run: its data, its optimiser and its progress."""

    def __init__(
        self,
        pair: Pair,
        train: Rows,
        valid: Rows | None,
        settings: Settings,
        checkpoint: Path | None,
        *,
        progress: bool,
    ) -> None:
        self.pair, self.data, self.valid = pair, train, valid
        self.settings, self.checkpoint, self.progress = settings, checkpoint, progress
        self.device = pair.device
        self.num_rows = pair.num_rows = train.num_rows
        self.batch_size = settings.batch_size or _BATCH_SIZE
        self.rows_in_step = self.batch_size * parallel.world_size()
        self.steps = len(self._split(torch.arange(self.num_rows)))
        self.interrupts = parallel.Interrupts()
        self.order = torch.Generator().manual_seed(settings.seed)
        self.state: dict[str, Any] | None = None  # of random numbers, between epochs
        self.stopped = "finished"
        with current(self.device), _seeded(None, settings.seed, self.device) as self.state, local_parameters():
            self.first = self._first_reference()
            with forked_random_state(self.device):
                batch = pair.prepare(self.data.resolve(self.first))
            self.structure = pair.structure(batch)
            self.valid_structure = self._structure_of_valid(batch)
            self.parameters = trainable(pair, batch, self.structure)
            self.optimizer = settings.make_optimizer(list(self.parameters.values()), self.device)
            self.scheduler = settings.make_scheduler(self.optimizer)
            decay = settings.average_weights
            self.average = None if decay is None else WeightAverage(list(self.parameters.values()), decay)
            self.history: list[dict[str, float]] = []
            self.changes: list[dict[str, Any]] = []
            self.weights = self._copy_weights()
            self.averages = self._copy_averages()
            self.best: dict[str, Tensor] = {}
            self.best_elbo, self.best_epoch = -math.inf, 0

    @classmethod
    def start(
        cls,
        pair: Pair,
        x_train: Inputs,
        *,
        validation_data: Inputs | None,
        device: str | torch.device,
        progress: bool,
        checkpoint: str | os.PathLike[str] | None,
        resume: bool | str,
        num_workers: int,
        **arguments: Any,
    ) -> "Run":
        """Builds a run, after all checks that are possible before training."""
        if resume and checkpoint is None:
            raise ValueError("resume=True needs checkpoint, the file to continue from")
        if resume not in (True, False, "learning_rate"):
            raise ValueError(f"resume must be True, False or 'learning_rate', found {resume!r}")
        settings = Settings(**arguments)
        if settings.patience is not None and validation_data is None:
            raise ValueError("patience needs validation_data: early stopping watches their ELBO")
        device = resolve_device(device)
        if settings.precision == "bfloat16" and not has_bfloat16(device):
            warnings.warn(
                "this CPU has no instructions for bfloat16 and is many times slower with it: use precision='full'",
                stacklevel=3,
            )
        pair.to(device)
        train = as_rows(x_train, device, num_workers=num_workers, name="x_train")
        if train.num_rows == 0:
            raise ValueError("x_train has no rows; expected at least one")
        if pair.data_range is not None:
            transform = pair.transform.settle(train.parts(), pair.data_range)
            pair.transform = transform.to(device=pair.device, dtype=pair.dtype)
        pair.check(train, "x_train", training=True, fingerprint=checkpoint is not None)
        valid = None
        if validation_data is not None:
            kept = {"num_workers": num_workers, "fingerprint": checkpoint is not None}
            valid = pair.check(validation_data, "validation_data", **kept)
        ranks = parallel.world_size()
        batch_size = min(_BATCH_SIZE, train.num_rows // ranks) if settings.batch_size is None else settings.batch_size
        if batch_size < 1 or train.num_rows < batch_size * ranks:
            on = f" on {ranks} ranks" if ranks > 1 else ""
            raise ValueError(
                f"x_train has {train.num_rows} rows, fewer than batch_size={max(1, batch_size)}{on}: use a smaller "
                f"batch_size, or fewer ranks"
            )
        settings = replace(settings, batch_size=batch_size)
        path = None if checkpoint is None else Path(checkpoint)
        run = cls(pair, train, valid, settings, path, progress=progress and parallel.rank() == 0)
        if resume:
            run.restore(other_rate=resume == "learning_rate")
        return run

    def _split(self, order: Tensor) -> list[Tensor]:
        """The rows of each step. A last step with fewer than two rows per rank joins the one before, for batch norm."""
        parts = list(order.split(self.rows_in_step))
        if len(parts) > 1 and len(parts[-1]) < 2 * parallel.world_size():
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def _first_reference(self) -> dict[str, Tensor]:
        return next(iter(self.data.references([torch.arange(self.batch_size)])))

    def _execution(self) -> Execution:
        settings = self.settings
        gradients = Gradients(
            self.pair,
            self.parameters,
            self.data,
            self.first,
            self.structure,
            settings.objective,
            precision=settings.precision,
        )
        execution = Execution(gradients, self.optimizer, settings.max_grad_norm, self.average)
        if (why := gradients.why_programs) is not None:
            execution.how = f"eager: {why}"
        else:
            execution.stage(
                self.first,
                compile=settings.compile,
                num_steps=settings.epochs * self.steps,
                steps_done=len(self.history) * self.steps,
            )
        return execution

    def epochs(self) -> Iterator[dict[str, float]]:
        """Trains the remaining epochs, one at a time, and leaves the best weights in the pair."""
        total, done = self.settings.epochs, len(self.history)
        averages = [] if self.average is None else self.average.state
        parallel.broadcast([*self.parameters.values(), *self.pair.state_dict().values(), *averages])
        self._equal_buffers()
        self.weights, self.averages = self._copy_weights(), self._copy_averages()
        bar = progress.bar(total=total * self.steps, initial=done * self.steps, disable=not self.progress, unit="step")
        try:
            with bar:
                self.pair.train()
                with self._in_force():
                    self.execution = self._execution()
                while len(self.history) < total:
                    if self._out_of_patience():
                        self.stopped = "early"
                        break
                    self.pair.train()
                    with self._in_force(), self.interrupts:
                        self._epoch(bar)
                    self.pair.eval()
                    with self._averaged():
                        yield dict(self.history[-1])
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            if self.best:
                self._set_weights(self.best)
            elif self.average is not None:
                self.average.show()
            for parameter in self.parameters.values():
                parameter.grad = None
            self.pair.eval()

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """Activates the run's random numbers, device and arithmetic; keeps modules' parameters out of Pyro's store."""
        with (
            current(self.device),
            _seeded(self.state, self.settings.seed, self.device) as state,
            local_parameters(),
            repeatable(),
            in_force("full"),
        ):
            yield
        self.state = state

    def table(self) -> "pd.DataFrame":
        """The history as a table, with how training ended."""
        import pandas as pd

        history = pd.DataFrame(self.history)
        history.attrs = {
            "stopped": self.stopped,
            "best_epoch": self.best_epoch or None,
            "execution": self.execution.how,
            "closed_form": self.execution.eager.closed_form,
            "changes": self.changes,
        }
        return history

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self.history) - self.best_epoch >= patience

    def _epoch(self, bar: Any) -> None:
        epoch = len(self.history) + 1
        started = time.perf_counter()
        order = torch.randperm(self.num_rows, generator=self.order)
        done = [((epoch - 1) * self.steps + step) / (self.settings.epochs * self.steps) for step in range(self.steps)]
        rates = self.settings.rates(self.optimizer, done)
        indices = self._split(order)
        parallel.seed_other_ranks(self.settings.seed, epoch)
        with in_force(self.settings.precision):
            sums, seen = self._steps(Epoch(indices, self._references, done, rates), bar, started)
        reconstruction, kl, auxiliary, objective = (sums / seen).tolist()
        seconds = time.perf_counter() - started
        row = {"epoch": epoch, "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if self.structure.auxiliary:
            row["auxiliary"] = auxiliary
        row["objective"] = objective
        if math.isfinite(reconstruction - kl + auxiliary):
            # The epoch's ELBO does not show the last step.
            if not bool(torch.stack([parameter.isfinite().all() for parameter in self.parameters.values()]).all()):
                self._refuse(f"weights became infinite or NaN in epoch {epoch}", epoch)
            if self.valid is not None:
                with self._averaged():
                    row |= self._validate(self.valid)
                if math.isnan(row["validation_elbo"]):
                    self._refuse(f"the validation ELBO became nan in epoch {epoch}", epoch)
        else:
            terms = f"(reconstruction {reconstruction}, KL {kl})"
            self._refuse(f"the ELBO became {reconstruction - kl} in epoch {epoch} {terms}", epoch)
        weight = getattr(self.settings.objective, "weight", None)
        self.history.append(
            row
            | ({} if weight is None else {"kl_weight": float(weight(done[-1]))})
            | {
                "learning_rate": rates[0][0],
                "seconds": seconds,
                "rows_per_second": seen / seconds,
            }
        )
        self.weights, self.averages = self._copy_weights(), self._copy_averages()
        if self.valid is not None and row["validation_elbo"] > self.best_elbo:
            self.best_elbo, self.best_epoch = row["validation_elbo"], epoch
            with self._averaged():
                self.best = self._copy_weights()
        if self.scheduler is not None:
            self.scheduler.step(row.get("validation_elbo", row["elbo"]))
        if self.checkpoint is not None and parallel.rank() == 0:
            write_checkpoint(self._state(), self.checkpoint)

    def _steps(self, plan: Epoch, bar: Any, started: float) -> tuple[Tensor, int]:
        """Takes the steps of an epoch; returns their sums and their number of rows."""
        epoch, seen = len(self.history) + 1, 0
        self.execution.begin_epoch(plan)
        sums = self.execution.sums
        compiling = self.execution.is_to_compile and not bar.disable
        if compiling:
            bar.set_postfix_str("compiling the programs, which takes a while")
        for step, (index, reference) in enumerate(zip(plan.indices, plan.read(plan.indices), strict=True)):
            if step % _STEPS_BETWEEN_AGREEMENTS == 0:
                self.interrupts.agree(self.device)
            self.execution.step(reference, checked=epoch == 1 and step == 0)
            if step in (0, self.steps - 1):
                self._equal_buffers()
            seen += len(index)
            # Values are read back from the device only when the bar is redrawn.
            if bar.disable:
                continue
            if time.time() - bar.last_print_t >= bar.mininterval or (compiling and step == self.steps - 1):
                rate = plan.rates[step][0]
                bar.set_postfix_str(self._postfix(epoch, sums / seen, started, seen, rate), refresh=False)
            bar.update()
        return sums, seen

    def _refuse(self, what: str, epoch: int) -> NoReturn:
        """Ends a run that has diverged, and restores the weights from before the epoch."""
        self._set_weights(self.weights)
        if self.average is not None:
            self.average.set_state(self.averages)
        raise FloatingPointError(
            f"{what}; the weights of epoch {epoch - 1} are restored: try a lower learning_rate, max_grad_norm=100, or "
            f"a likelihood with a higher floor on its scale"
        )

    def _references(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor] | None]:
        """For each step, a reference to this rank's rows; None if it has none, in the last step."""
        ours = [share for index in indices if len(share := parallel.share(index))]
        return itertools.chain(self.data.references(ours), itertools.repeat(None, len(indices) - len(ours)))

    def _equal_buffers(self) -> None:
        """Copies buffers, such as running statistics, from rank 0 to all ranks."""
        parallel.broadcast(self.pair.buffers())

    def _structure_of_valid(self, batch: Batch) -> Structure:
        """The programs' structure on validation rows, which may lack labels that training rows have."""
        if self.valid is None:
            return self.structure
        with forked_random_state(self.device):
            few = self.pair.prepare(next(self.valid.batches([torch.arange(min(LOOKED_AT, self.valid.num_rows))])))
        return self.structure if few.arguments.keys() == batch.arguments.keys() else self.pair.structure(few)

    def _validate(self, valid: Rows) -> dict[str, float]:
        # The same noise after every epoch, so only the weights make a difference.
        terms = elbo_per_row(
            self.pair, valid, num_rows=self.num_rows, seed=self.settings.seed, structure=self.valid_structure
        )
        reconstruction, kl = parallel.from_first_rank([float(term.double().mean()) for term in terms])
        return {
            "validation_elbo": reconstruction - kl,
            "validation_reconstruction": reconstruction,
            "validation_kl": kl,
        }

    def _postfix(self, epoch: int, means: Tensor, started: float, seen: int, learning_rate: float) -> str:
        reconstruction, kl, *_ = means.tolist()
        rate = seen / (time.perf_counter() - started)
        return (
            f"epoch {epoch}/{self.settings.epochs}, ELBO {reconstruction - kl:.2f}, "
            f"reconstruction {reconstruction:.2f}, KL {kl:.2f} nats, lr {learning_rate:.1e}, {rate:,.0f} rows/s"
        )

    def _store_parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.parameters.items() if name.startswith(STORE)}

    def _averaged(self) -> AbstractContextManager[None]:
        """Puts the averages of the weights into the pair, if they are averaged."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _copy_averages(self) -> list[Tensor]:
        return [] if self.average is None else [tensor.clone() for tensor in self.average.state]

    def _copy_weights(self) -> dict[str, Tensor]:
        state = {**self.pair.state_dict(), **self._store_parameters()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        store = self._store_parameters()
        with torch.no_grad():
            for name, parameter in store.items():
                parameter.copy_(weights[name])
        self.pair.load_state_dict({name: tensor for name, tensor in weights.items() if name not in store})

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed, as JSON data: settings and fingerprints of the data."""
        return {
            **self.settings.identity(),
            "num_rows": self.num_rows,
            "transform": repr(self.pair.transform),
            _TRAINING_ROWS: self.data.fingerprint(),
            _VALIDATION_ROWS: None if self.valid is None else self.valid.fingerprint(),
        }

    def _state(self) -> Checkpoint:
        """The state of the run for its checkpoint."""
        moments, optimizer = pack_optimizer(self.optimizer)
        return Checkpoint(
            tensors={
                "weights": self.weights,
                "best": self.best,
                "average": {} if self.average is None else dict(zip(self.parameters, self.averages, strict=False)),
                "moments": moments,
                "random": get_random_state(self.device),
                "order": {"state": self.order.get_state()},
            },
            numbers={
                "identity": self.identity,
                "optimizer": optimizer,
                "scheduler": {} if self.scheduler is None else numbers_of(self.scheduler.state_dict()),
                "history": self.history,
                "changes": self.changes,
                "best_epoch": self.best_epoch,
                "best_elbo": self.best_elbo,
                "average_total": 0.0 if self.average is None else float(self.averages[-1]),
            },
        )

    def _check_same(self, before: dict[str, Any], *, other_rate: bool) -> None:
        """Refuses the checkpoint of a run with other settings or data; checkpoints of old versions may lack some."""
        for name, value in self.identity.items():
            if name not in before or before[name] == value or (name == "learning_rate" and other_rate):
                continue
            if name in (_TRAINING_ROWS, _VALIDATION_ROWS):
                raise ValueError(
                    f"{self.checkpoint} is from a run on other {name}, or on the same in another order: resume with "
                    f"the original data and split, or train again"
                )
            raise ValueError(
                f"{self.checkpoint} is from a run with {name}={before[name]}, found {name}={value}: "
                f"resume with the same settings and data"
            )

    def restore(self, *, other_rate: bool = False) -> None:
        """Restores the state in the checkpoint.

        Args:
            other_rate: Use this run's learning rate instead of the checkpoint's.

        Raises:
            ValueError: if it belongs to another run, or is damaged.
        """
        assert self.checkpoint is not None
        saved = read_checkpoint(self.checkpoint, like=self._state(), parameters=list(self.parameters.values()))
        before = saved.numbers["identity"]
        self._check_same({"average_weights": None} | before, other_rate=other_rate)
        self._set_weights(saved.tensors["weights"])
        unpack_optimizer(self.optimizer, saved.tensors["moments"], saved.numbers["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(saved.numbers["scheduler"])
        self.history, self.changes = saved.numbers["history"], saved.numbers["changes"]
        if before["learning_rate"] != self.settings.learning_rate:
            self._change_rate(before["learning_rate"], self.settings.learning_rate)
        self.best_epoch, self.best_elbo = saved.numbers["best_epoch"], saved.numbers["best_elbo"]
        if self.average is not None:
            averages = saved.tensors["average"]
            total = self.average.total.new_tensor(saved.numbers["average_total"])
            self.average.set_state([*(averages[name] for name in self.parameters), total])
        self.weights, self.averages = self._copy_weights(), self._copy_averages()
        self.best = {name: tensor.to(self.device) for name, tensor in saved.tensors["best"].items()}
        self.order.set_state(saved.tensors["order"]["state"])
        assert self.state is not None
        self.state["torch"] = saved.tensors["random"]

    def _change_rate(self, before: float, after: float) -> None:
        """Continues with another learning rate on the same schedule."""
        for group in self.optimizer.param_groups:
            group["lr"] *= after / before  # in place if it is a tensor
            group["initial_lr"] *= after / before
        self.changes.append({"epoch": len(self.history) + 1, "learning_rate": [before, after]})
