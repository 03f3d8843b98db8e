"""Training: :func:`fit` maximises the ELBO, or another objective, of any pair of Pyro programs."""

import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.optim import lr_scheduler
from tqdm.auto import tqdm

from pyro_vae._support.names import lookup
from pyro_vae.data.rows import Inputs, Rows, as_rows
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.objectives import Elbo, as_objective
from pyro_vae.inference.sites import run_pair
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state, local_parameters
from pyro_vae.training import parallel
from pyro_vae.training.checkpoints import (
    Checkpoint,
    get_random_state,
    pack_optimizer,
    read_checkpoint,
    set_random_state,
    unpack_optimizer,
    write_checkpoint,
)
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.training.execution import Compile, Execution
from pyro_vae.training.step import SUMS, Gradients, Precision, has_bfloat16

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["epochs", "fit", "resolve_device"]

Schedule = Literal["cosine", "constant", "plateau"]
OptimizerFactory = Callable[..., torch.optim.Optimizer]


def _late_cosine(done: float) -> float:
    """One for half of the run, then down to zero: a fall from the start leaves short runs half trained."""
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, 2 * done - 1)))


_SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], Any]] = {
    "cosine": lambda optimizer, steps: lr_scheduler.LambdaLR(optimizer, lambda step: _late_cosine(step / steps)),
    "constant": lambda optimizer, steps: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    "plateau": lambda optimizer, steps: lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=5),
}

_STORE = "param store: "  # how weights that live in Pyro's parameter store are named in a checkpoint

_STEPS_BETWEEN_AGREEMENTS = 10  # of several ranks on whether to stop, which a GPU is waited for


def fit(
    pair: Pair,
    x_train: Inputs,
    *,
    validation_data: Inputs | None = None,
    objective: Any = None,
    optimizer: OptimizerFactory = torch.optim.Adam,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    schedule: Schedule = "cosine",
    max_grad_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: Precision = "full",
    compile: Compile = "auto",
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    num_workers: int = 2,
) -> "pd.DataFrame":
    r"""Trains a pair of programs by stochastic variational inference.

    Every step takes ``batch_size`` rows that the epoch has not seen, estimates their objective as ``Trace_ELBO`` does,
    and takes a step of the optimiser up its gradient. The data stay on the device as they came; the transform is
    applied to each batch, so dynamic binarisation draws again each time. A last batch of a single row joins the one
    before it, for batch norm has no variance of one row.

    Where a process group of ``torch.distributed`` is initialised and every rank calls this with the same arguments, the
    ranks train together: a step takes ``batch_size`` rows on each, with noise of its own, and goes up the gradient of
    the objective of all of them. All end with the same weights and history; rank 0 writes the checkpoint, which any
    number of ranks can go on from.

    Args:
        pair: A :class:`~pyro_vae.VAE`, or any :class:`~pyro_vae.Pair`. It is trained in place.
        x_train: Rows ``(N, *E)`` in the user's units; or a mapping of ``"x"`` and the programs' keyword arguments. What
            does not fit into memory is streamed: a memory-mapped array (``np.load(path, mmap_mode="r")``) or a
            ``torch.utils.data.Dataset`` of rows or such mappings.
        validation_data: Rows that are never trained on. After each epoch their ELBO is estimated, always with the same
            noise, and the weights with the highest one are kept.
        objective: What is maximised: by default :class:`~pyro_vae.Elbo`. Any ELBO object of ``pyro.infer`` is taken
            too; ``Trace_ELBO``, ``TraceMeanField_ELBO`` and ``TraceEnum_ELBO`` as the equal ``Elbo``, others as they
            are, on the programs. Or a function of draws, see :mod:`pyro_vae.inference.objectives`.
        optimizer: A class of ``torch.optim``, or a function called as one: ``optimizer(parameters, lr=...)``. By
            default Adam (Kingma & Ba, 2015).
        epochs: Times that every row is seen.
        batch_size: Rows in a step, on each rank; the last step of an epoch takes what is left.
        learning_rate: The step size at the start.
        schedule: ``"cosine"`` keeps it for half of the run and lets it fall to zero along a cosine over the
            other half, ``"constant"`` keeps it, ``"plateau"`` halves it when the validation (without any, the
            training) ELBO has not risen for five epochs.
        max_grad_norm: Bound on the norm of the whole gradient, in nats per datum.
        patience: Stop when the validation ELBO has not risen for this many epochs.
        seed: Seeds the order of the rows, the noise and the transform. The caller's random state is left alone.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        precision: Of matrix products and convolutions: ``"full"`` is that of the weights; ``"tf32"`` lets a GPU round
            factors to 10 bits; ``"bfloat16"`` has factors of 8 bits. All else, distributions first, is never rounded.
        compile: ``True`` runs the programs once and trains the graph of what they did, compiled, and on a GPU captured;
            ``False`` runs them at every step; ``"auto"`` captures on a GPU, and compiles on a CPU where there are steps
            enough to repay it. The numbers are the same up to rounding: where a graph would not be what the programs
            do, training runs the programs, and one warning says why.
        progress: Show a progress bar.
        checkpoint: File to which the run's state is written after each epoch.
        resume: Go on from the file ``checkpoint``, to the same numbers as a run that was never stopped.
        num_workers: Processes that read what is streamed.

    Returns:
        A table with one row an epoch: ``epoch``; ``elbo``, ``reconstruction`` and ``kl`` over the training rows, with
        ``elbo = reconstruction - kl``, in nats per datum, in the user's units, without any scale or weight that
        training puts on them; ``objective``, what was maximised, with them; ``auxiliary``, if the guide observes
        something; the first three with the prefix ``validation_``; ``kl_weight``, if the objective has one,
        ``learning_rate``, ``seconds`` and ``rows_per_second``.
        ``history.attrs["stopped"]`` says why it ended: ``"finished"``, ``"early"`` or ``"interrupted"`` (Ctrl-C, which
        keeps what has been learned), ``history.attrs["best_epoch"]`` which epoch's weights were kept, if
        there are validation data, ``history.attrs["execution"]`` how steps were run, and why, and
        ``history.attrs["closed_form"]`` at which latent sites the KL was taken in closed form.

    Raises:
        ValueError: if the data or an argument do not fit, or the programs break the contract, before anything is
            trained.
        TypeError: if there is a keyword argument that neither program takes.
        FloatingPointError: if the objective becomes NaN or infinite; the weights of the last whole epoch are put back.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=1, hidden_dims=(), likelihood=Normal())
        >>> history = fit(vae, torch.randn(256, 3), epochs=2, progress=False)
        >>> len(history), history.attrs["stopped"]
        (2, 'finished')
    """
    arguments = {name: value for name, value in locals().items() if name not in ("pair", "x_train")}
    run = _Run.start(pair, x_train, **arguments)
    for _ in run.epochs():
        pass
    return run.table()


def epochs(pair: Pair, x_train: Inputs, **arguments: Any) -> Iterator[dict[str, float]]:
    r"""The loop of :func:`fit`, to be used: trains an epoch at a time, and yields its row of the history.

    Between epochs the pair is in evaluation mode, and the caller's random state is in force: log, draw, average
    weights, or leave the loop. At its end, however it comes, the best weights are in the pair if there are
    ``validation_data``.

    Args:
        pair: The programs.
        x_train: Rows to train on.
        arguments: Those of :func:`fit`.

    Yields:
        ``epoch``, ``elbo``, ``reconstruction``, ``kl`` and the rest of a row of the history.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=1, hidden_dims=(), likelihood=Normal())
        >>> for epoch in epochs(vae, torch.randn(256, 3), epochs=100, progress=False):
        ...     if epoch["epoch"] == 3:
        ...         break
        >>> vae.training
        False
    """
    yield from _Run.start(pair, x_train, **arguments).epochs()


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a name stands for; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: if there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot use device {str(device)!r} ({reason}); use auto, cpu or cuda") from error
    return device


@contextmanager
def _seeded(state: dict[str, Any] | None, seed: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Lets every generator that a program may use go on from a state, or from a seed, and puts the caller's back.

    The mapping that it gives holds, afterwards, the state to go on from.
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


@dataclass(frozen=True)
class _Settings:
    """What a run goes by, checked."""

    objective: Any
    optimizer: OptimizerFactory
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule
    max_grad_norm: float | None
    patience: int | None
    seed: int
    precision: Precision
    compile: Compile

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, found {value}")
        lookup(self.schedule, _SCHEDULES, "schedule")
        lookup(self.precision, ("full", "tf32", "bfloat16"), "precision")
        if self.compile not in ("auto", True, False):
            raise ValueError(f"compile must be 'auto', True or False, found {self.compile!r}")
        if not callable(self.optimizer):
            raise TypeError(f"optimizer is {self.optimizer!r}; expected a class of torch.optim, or a function like one")

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on, as JSON data."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        pyros = type(self.objective).__qualname__  # whose objects print with their address
        plain = repr(self.objective)
        return named | {
            "objective": plain if " at 0x" not in plain else pyros,
            "optimizer": getattr(self.optimizer, "__qualname__", type(self.optimizer).__qualname__),
        }

    def make_optimizer(self, parameters: Sequence[Tensor], device: torch.device) -> torch.optim.Optimizer:
        """The optimiser; Adam's kernel does all of a step in one call."""
        if self.optimizer is not torch.optim.Adam:
            return self.optimizer(parameters, lr=self.learning_rate)
        on_gpu = device.type == "cuda"
        return torch.optim.Adam(
            parameters,
            # A graph that was captured sees a tensor change, and a number not.
            lr=torch.full((), self.learning_rate, device=device) if on_gpu else self.learning_rate,
            fused=on_gpu or device.type == "cpu",
            capturable=on_gpu,
        )


class _Run:
    """One training run: its data, its optimiser, and how far it is."""

    def __init__(
        self,
        pair: Pair,
        train: Rows,
        valid: Rows | None,
        settings: _Settings,
        checkpoint: Path | None,
        *,
        progress: bool,
    ) -> None:
        self.pair, self.data, self.valid = pair, train, valid
        self.settings, self.checkpoint, self.progress = settings, checkpoint, progress
        self.device = pair.device
        self.num_rows = pair.num_rows = train.num_rows
        self.rows_in_step = settings.batch_size * parallel.world_size()
        self.steps = len(self._split(torch.arange(self.num_rows)))
        self.interrupts = parallel.Interrupts()
        self.order = torch.Generator().manual_seed(settings.seed)
        self.state: dict[str, Any] | None = None  # of random numbers, between epochs
        self.stopped = "finished"
        with _seeded(None, settings.seed, self.device) as self.state, local_parameters():
            self.first = self._first_reference()
            with forked_random_state(self.device):
                batch = pair.prepare(self.data.resolve(self.first))
            self.structure = pair.structure(batch)
            self.parameters = self._parameters(batch)
            self.optimizer = settings.make_optimizer(list(self.parameters.values()), self.device)
            self.scheduler = _SCHEDULES[settings.schedule](self.optimizer, settings.epochs * self.steps)
            self.history: list[dict[str, float]] = []
            self.weights = self._copy_weights()
            self.best: dict[str, Tensor] = {}
            self.best_elbo, self.best_epoch = -math.inf, 0

    @classmethod
    def start(
        cls,
        pair: Pair,
        x_train: Inputs,
        *,
        validation_data: Inputs | None = None,
        objective: Any = None,
        optimizer: OptimizerFactory = torch.optim.Adam,
        epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        schedule: Schedule = "cosine",
        max_grad_norm: float | None = None,
        patience: int | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        precision: Precision = "full",
        compile: Compile = "auto",
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        num_workers: int = 2,
    ) -> "_Run":
        """Checks everything that can be checked before anything is trained."""
        if resume and checkpoint is None:
            raise ValueError("resume=True needs checkpoint, the file to go on from")
        settings = _Settings(
            Elbo() if objective is None else as_objective(objective),
            optimizer,
            epochs,
            batch_size,
            learning_rate,
            schedule,
            max_grad_norm,
            patience,
            seed,
            precision,
            compile,
        )
        if patience is not None and validation_data is None:
            raise ValueError("patience needs validation_data: early stopping watches their ELBO")
        device = resolve_device(device)
        if precision == "bfloat16" and not has_bfloat16(device):
            warnings.warn(
                "this CPU has no instructions for bfloat16 and takes many times as long for it: use precision='full'",
                stacklevel=3,
            )
        pair.to(device)
        train = as_rows(x_train, device, num_workers=num_workers, name="x_train")
        if train.num_rows == 0:
            raise ValueError("x_train has no rows; expected at least one")
        if pair.data_range is not None:
            transform = pair.transform.settle(train.parts(), pair.data_range)
            pair.transform = transform.to(device=pair.device, dtype=pair.dtype)
        pair.check(train, "x_train", columns=True)
        valid = None
        if validation_data is not None:
            valid = pair.check(validation_data, "validation_data", num_workers=num_workers)
        if train.num_rows < batch_size * parallel.world_size():
            on = f" on {parallel.world_size()} ranks" if parallel.world_size() > 1 else ""
            raise ValueError(
                f"x_train has {train.num_rows} rows, fewer than batch_size={batch_size}{on}: use a smaller batch_size"
            )
        path = None if checkpoint is None else Path(checkpoint)
        run = cls(pair, train, valid, settings, path, progress=progress and parallel.rank() == 0)
        if resume:
            run.restore()
        return run

    def _parameters(self, batch: Batch) -> dict[str, Tensor]:
        """Everything there is to train: the modules' parameters, and those that the programs make when they run."""
        pair = self.pair
        with forked_random_state(self.device), evaluating(pair.model, pair.guide):
            with poutine.trace(param_only=True) as capture:
                run_pair(*pair.programs, batch, self.structure)
            # Only now: an autoguide makes its parameters when it first runs.
            named: dict[str, Tensor] = {name: p for name, p in pair.named_parameters() if p.requires_grad}
            known = {id(p) for p in pair.parameters()}
            for name, site in capture.trace.nodes.items():
                constrained: Any = site["value"]
                value = constrained.unconstrained()
                if id(value) not in known:
                    named[f"{_STORE}{name}"] = value
                    pair.store_names.add(name)
        if not named:
            raise ValueError("the programs have nothing to train: no pyro.param, pyro.module or nn.Parameter")
        return named

    def _split(self, order: Tensor) -> list[Tensor]:
        """The rows of each step. One row that is left over joins the step before it."""
        parts = list(order.split(self.rows_in_step))
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def _first_reference(self) -> dict[str, Tensor]:
        return next(iter(self.data.references([torch.arange(self.settings.batch_size)])))

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
        execution = Execution(gradients, self.optimizer, settings.max_grad_norm)
        if (why := gradients.why_programs) is not None:
            execution.how = f"eager: {why}"
        else:
            execution.stage(self.first, compile=settings.compile, num_steps=settings.epochs * self.steps)
        return execution

    def epochs(self) -> Iterator[dict[str, float]]:
        """Trains what is left to train, an epoch at a time, and leaves the best weights in the pair."""
        total, done = self.settings.epochs, len(self.history)
        parallel.broadcast([*self.parameters.values(), *self.pair.state_dict().values()])
        self._equal_buffers()
        self.weights = self._copy_weights()
        bar = tqdm(
            total=total * self.steps,
            initial=done * self.steps,
            disable=not self.progress,
            unit="step",
            dynamic_ncols=True,
        )
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
                    yield dict(self.history[-1])
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            if self.best:
                self._set_weights(self.best)
            for parameter in self.parameters.values():
                parameter.grad = None
            self.pair.eval()

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """The run's own random numbers, and parameters of modules kept out of Pyro's store."""
        with _seeded(self.state, self.settings.seed, self.device) as state, local_parameters():
            yield
        self.state = state

    def table(self) -> "pd.DataFrame":
        """The history as a table, with how it ended."""
        import pandas as pd

        history = pd.DataFrame(self.history)
        history.attrs = {
            "stopped": self.stopped,
            "best_epoch": self.best_epoch or None,
            "execution": self.execution.how,
            "closed_form": self.execution.eager.closed_form,
        }
        return history

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and len(self.history) - self.best_epoch >= patience

    def _epoch(self, bar: Any) -> None:
        epoch = len(self.history) + 1
        started = time.perf_counter()
        order = torch.randperm(self.num_rows, generator=self.order)
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        learning_rate, progress, seen = self._learning_rate(), 0.0, 0
        indices = self._split(order)
        parallel.seed_other_ranks(self.settings.seed, epoch)
        for step, (index, reference) in enumerate(zip(indices, self._references(indices), strict=True)):
            if step % _STEPS_BETWEEN_AGREEMENTS == 0:
                self.interrupts.agree(self.device)
            progress = ((epoch - 1) * self.steps + step) / (self.settings.epochs * self.steps)
            sums += self.execution.step(reference, progress, checked=epoch == 1 and step == 0)
            if step in (0, self.steps - 1):
                self._equal_buffers()
            if self.settings.schedule != "plateau":
                self.scheduler.step()
            seen += len(index)
            # Between redraws of the bar nothing is read back from the device.
            if not bar.disable and time.time() - bar.last_print_t >= bar.mininterval:
                bar.set_postfix_str(self._postfix(epoch, sums / seen, started, seen), refresh=False)
            bar.update()
        reconstruction, kl, auxiliary, objective = (sums / seen).tolist()
        seconds = time.perf_counter() - started
        if not math.isfinite(reconstruction - kl + auxiliary):
            self._set_weights(self.weights)
            raise FloatingPointError(
                f"the ELBO became {reconstruction - kl} in epoch {epoch} (reconstruction {reconstruction}, KL {kl}); "
                f"the weights are those of epoch {epoch - 1}: try a lower learning_rate, max_grad_norm=100, or a "
                f"likelihood with a higher floor on its scale"
            )
        row = {"epoch": epoch, "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if self.structure.auxiliary:
            row["auxiliary"] = auxiliary
        row["objective"] = objective
        if self.valid is not None:
            row |= self._validate(self.valid)
        weight = getattr(self.settings.objective, "weight", None)
        self.history.append(
            row
            | ({} if weight is None else {"kl_weight": float(weight(progress))})
            | {
                "learning_rate": learning_rate,
                "seconds": seconds,
                "rows_per_second": seen / seconds,
            }
        )
        self.weights = self._copy_weights()
        if self.valid is not None and row["validation_elbo"] > self.best_elbo:
            self.best, self.best_elbo, self.best_epoch = self.weights, row["validation_elbo"], epoch
        if self.settings.schedule == "plateau":
            self.scheduler.step(row.get("validation_elbo", row["elbo"]))
        if self.checkpoint is not None and parallel.rank() == 0:
            self._write(self.checkpoint)

    def _references(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor] | None]:
        """For each step's rows a reference to those of this rank; None where it has none, in the last step."""
        ours = [share for index in indices if len(share := parallel.share(index))]
        return itertools.chain(self.data.references(ours), itertools.repeat(None, len(indices) - len(ours)))

    def _equal_buffers(self) -> None:
        """Gives all ranks what the first has learned from its rows besides the weights."""
        parallel.broadcast(self.pair.buffers())

    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _validate(self, valid: Rows) -> dict[str, float]:
        # The same noise after every epoch: the weights alone make the difference.
        terms = elbo_per_row(
            self.pair, valid, num_rows=self.num_rows, seed=self.settings.seed, structure=self.structure
        )
        reconstruction, kl = parallel.from_first_rank([float(term.double().mean()) for term in terms])
        return {
            "validation_elbo": reconstruction - kl,
            "validation_reconstruction": reconstruction,
            "validation_kl": kl,
        }

    def _postfix(self, epoch: int, means: Tensor, started: float, seen: int) -> str:
        reconstruction, kl, *_ = means.tolist()
        rate = seen / (time.perf_counter() - started)
        return (
            f"epoch {epoch}/{self.settings.epochs}, ELBO {reconstruction - kl:.2f}, "
            f"reconstruction {reconstruction:.2f}, KL {kl:.2f} nats, lr {self._learning_rate():.1e}, {rate:,.0f} rows/s"
        )

    def _store_parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.parameters.items() if name.startswith(_STORE)}

    def _copy_weights(self) -> dict[str, Tensor]:
        state = {**self.pair.state_dict(), **self._store_parameters()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        store = self._store_parameters()
        with torch.no_grad():
            for name, parameter in store.items():
                parameter.copy_(weights[name])
        self.pair.load_state_dict({name: tensor for name, tensor in weights.items() if name not in store})

    def _identity(self) -> dict[str, Any]:
        """What must be the same when the run goes on, as JSON data."""
        return {**self.settings.identity(), "num_rows": self.num_rows}

    def _write(self, path: Path) -> None:
        moments, optimizer = pack_optimizer(self.optimizer)
        write_checkpoint(
            Checkpoint(
                tensors={
                    "weights": self.weights,
                    "best": self.best,
                    "moments": moments,
                    "random": get_random_state(self.device),
                    "order": {"state": self.order.get_state()},
                },
                numbers={
                    "identity": self._identity(),
                    "optimizer": optimizer,
                    "scheduler": self.scheduler.state_dict(),
                    "history": self.history,
                    "best_epoch": self.best_epoch,
                    "best_elbo": self.best_elbo,
                },
            ),
            path,
        )

    def restore(self) -> None:
        """Goes back to the state in the checkpoint.

        Raises:
            ValueError: if it belongs to another run.
        """
        assert self.checkpoint is not None
        saved = read_checkpoint(self.checkpoint)
        for name, value in self._identity().items():
            before = saved.numbers["identity"].get(name)
            if before != value:
                raise ValueError(
                    f"{self.checkpoint} is of a run with {name}={before}, found {name}={value}: "
                    f"go on with the same settings and data"
                )
        try:
            self._set_weights(saved.tensors["weights"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{self.checkpoint} is of another model ({' '.join(str(error).split())})") from error
        unpack_optimizer(self.optimizer, saved.tensors.get("moments", {}), saved.numbers["optimizer"])
        self.scheduler.load_state_dict(saved.numbers["scheduler"])
        self.history = saved.numbers["history"]
        if self.settings.schedule != "plateau":  # another number of ranks takes another number of steps
            self.scheduler.last_epoch = len(self.history) * self.steps
        self.best_epoch, self.best_elbo = saved.numbers["best_epoch"], saved.numbers["best_elbo"]
        self.weights = self._copy_weights()
        self.best = {name: tensor.to(self.device) for name, tensor in saved.tensors.get("best", {}).items()}
        self.order.set_state(saved.tensors["order"]["state"])
        assert self.state is not None
        self.state["torch"] = saved.tensors["random"]
