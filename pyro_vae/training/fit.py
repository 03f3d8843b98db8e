"""Training: :func:`fit` maximises the ELBO of any pair of Pyro programs."""

import dataclasses
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyro
import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.optim import lr_scheduler
from tqdm.auto import tqdm

from pyro_vae._support.names import lookup
from pyro_vae.data.rows import Data, Rows, as_rows
from pyro_vae.inference.objectives import KlEstimate, elbo_terms
from pyro_vae.pair import Pair
from pyro_vae.programs import evaluating, forked_random_state, local_parameters
from pyro_vae.training import parallel
from pyro_vae.training.checkpoints import (
    Checkpoint,
    get_random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.training.execution import Compile, Execution
from pyro_vae.training.step import Gradients, Precision, has_bfloat16

__all__ = ["fit", "resolve_device"]

Schedule = Literal["cosine", "constant", "plateau"]


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
    x_train: Data,
    *,
    validation_data: Data | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    schedule: Schedule = "cosine",
    kl_weight: float = 1.0,
    kl_warmup: int = 0,
    kl: KlEstimate = "sampled",
    num_particles: int = 1,
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
) -> pd.DataFrame:
    r"""Trains a pair of programs by stochastic variational inference.

    Every step takes ``batch_size`` rows that the epoch has not seen, estimates their ELBO as ``Trace_ELBO`` does, and
    takes an Adam step up its gradient (Kingma & Ba, 2015). The data stay on the device as they came; the transform
    is applied to each batch, so dynamic binarisation draws anew each time.

    Where a process group of ``torch.distributed`` is initialised and every rank calls this with the same arguments, the
    ranks train together: a step takes ``batch_size`` rows on each, with noise of its own, and goes up the gradient of
    the ELBO of all of them. All end with the same weights and history; rank 0 writes the checkpoint, which any number
    of ranks can go on from.

    Args:
        pair: A :class:`~pyro_vae.VAE`, or any :class:`~pyro_vae.Pair`. It is trained in place.
        x_train: Rows ``(N, *E)`` in the user's units; or a mapping of ``"x"`` and the programs' keyword arguments,
            rows first. What does not fit into memory is streamed: a memory-mapped array
            (``np.load(path, mmap_mode="r")``) or a ``torch.utils.data.Dataset`` of rows or such mappings.
        validation_data: Rows that are never trained on. After each epoch their ELBO is estimated, always with the same
            noise, and the weights with the highest one are kept.
        epochs: Times that every row is seen.
        batch_size: Rows in a step, on each rank; the last step of an epoch takes what is left.
        learning_rate: Adam's step size at the start.
        schedule: ``"cosine"`` keeps it for half of the run and lets it fall to zero along a cosine over the
            other half, ``"constant"`` keeps it, ``"plateau"`` halves it when the validation (without any, the
            training) ELBO has not risen for five epochs.
        kl_weight: Weight β of the KL in what is maximised (Higgins et al., 2017); what is reported is unweighted.
        kl_warmup: Epochs over which that weight rises from 0 (Bowman et al., 2016).
        kl: ``"sampled"`` estimates the KL from the draw, as ``Trace_ELBO``; ``"analytic"`` takes it in closed form, as
            ``TraceMeanField_ELBO``; ``"auto"`` does so where there is one.
        num_particles: Draws of the guide for each row, in one vectorised run of the programs.
        max_grad_norm: Bound on the norm of the whole gradient, in nats per datum.
        patience: Stop when the validation ELBO has not risen for this many epochs.
        seed: Seeds the order of the rows, the noise and the transform. The caller's random state is left alone.
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        precision: Of matrix products and convolutions: ``"full"`` is that of the weights; ``"tf32"`` lets a GPU round
            factors to 10 bits; ``"bfloat16"`` has factors of 8 bits. All else, distributions first, is never rounded.
        compile: ``True`` runs the programs once and trains the graph of what they did, compiled, and on a GPU captured;
            ``False`` runs them at every step; ``"auto"`` captures on a GPU, and compiles on a CPU where there are steps
            enough to repay it. The numbers are the same up to rounding.
        progress: Show a progress bar.
        checkpoint: File to which the run's state is written after each epoch.
        resume: Go on from the file ``checkpoint``, to the same numbers as a run that was never stopped.
        num_workers: Processes that read what is streamed.

    Returns:
        A table with one row an epoch: ``epoch``; ``elbo``, ``reconstruction`` and ``kl`` over the training rows, with
        ``elbo = reconstruction - kl``, in nats per datum and in the user's units; the same with the prefix
        ``validation_``; ``kl_weight``, ``learning_rate``, ``seconds`` and ``rows_per_second``.
        ``history.attrs["stopped"]`` says why it ended: ``"finished"``, ``"early"`` or ``"interrupted"`` (Ctrl-C, which
        keeps what has been learned), ``history.attrs["best_epoch"]`` which epoch's weights were kept, if
        there are validation data, ``history.attrs["execution"]`` how steps were run, and why, and
        ``history.attrs["closed_form"]`` at which latent sites the KL was taken in closed form.

    Raises:
        ValueError: if the data or an argument do not suit, before anything is trained.
        FloatingPointError: if the ELBO becomes NaN or infinite; the weights of the last whole epoch are put back.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=1, hidden_dims=(), likelihood=Normal())
        >>> history = fit(vae, torch.randn(256, 3), epochs=2, progress=False)
        >>> len(history), history.attrs["stopped"]
        (2, 'finished')
    """
    if resume and checkpoint is None:
        raise ValueError("resume=True needs checkpoint, the file to go on from")
    settings = _Settings(
        epochs,
        batch_size,
        learning_rate,
        schedule,
        kl_weight,
        kl_warmup,
        kl,
        num_particles,
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
            stacklevel=2,
        )
    pair.to(device)
    train = as_rows(x_train, device, num_workers=num_workers, name="x_train")
    valid = None if validation_data is None else as_rows(validation_data, device, num_workers=num_workers)
    if train.num_rows == 0:
        raise ValueError("x_train has no rows; expected at least one")
    if pair.data_range is not None:
        transform = pair.transform.settle(train.parts(), pair.data_range)
        pair.transform = transform.to(device=pair.device, dtype=pair.dtype)
    train.check(pair, "x_train", columns=True)
    if valid is not None:
        valid.check(pair, "validation_data")
    if train.num_rows < batch_size * parallel.world_size():
        on = f" on {parallel.world_size()} ranks" if parallel.world_size() > 1 else ""
        raise ValueError(
            f"x_train has {train.num_rows} rows, fewer than batch_size={batch_size}{on}: use a smaller batch_size"
        )
    with _seeded(seed, device), local_parameters():
        run = _Run(pair, train, valid, settings, None if checkpoint is None else Path(checkpoint))
        if resume:
            run.restore()
        return run.train(progress=progress and parallel.rank() == 0)


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
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds every generator that a program may use, and puts the caller's states back."""
    state = get_rng_state()
    with forked_random_state(device):
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            set_rng_state(state)


@dataclass(frozen=True)
class _Settings:
    """The numbers that a run goes by, checked."""

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule
    kl_weight: float
    kl_warmup: int
    kl: KlEstimate
    num_particles: int
    max_grad_norm: float | None
    patience: int | None
    seed: int
    precision: Precision
    compile: Compile

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("kl_warmup", 0),
            ("num_particles", 1),
            ("patience", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, found {value}")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be a finite number from 0, found {self.kl_weight}")
        lookup(self.schedule, _SCHEDULES, "schedule")
        lookup(self.kl, ("sampled", "analytic", "auto"), "KL estimate")
        lookup(self.precision, ("full", "tf32", "bfloat16"), "precision")
        if self.compile not in ("auto", True, False):
            raise ValueError(f"compile must be 'auto', True or False, found {self.compile!r}")


class _Run:
    """One training run: its data, its optimiser, and how far it is."""

    def __init__(
        self,
        pair: Pair,
        train: Rows,
        valid: Rows | None,
        settings: _Settings,
        checkpoint: Path | None,
    ) -> None:
        self.pair, self.data, self.valid = pair, train, valid
        self.settings, self.checkpoint = settings, checkpoint
        self.device = pair.device
        self.num_rows = train.num_rows
        self.rows_in_step = settings.batch_size * parallel.world_size()
        self.steps = math.ceil(self.num_rows / self.rows_in_step)
        self.interrupts = parallel.Interrupts()
        self.order = torch.Generator().manual_seed(settings.seed)
        self.parameters = self._parameters()
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.parameters.values(),
            # A graph that was captured sees a tensor change, and a number not.
            lr=torch.tensor(settings.learning_rate, device=self.device) if on_gpu else settings.learning_rate,
            fused=on_gpu or self.device.type == "cpu",
            capturable=on_gpu,
        )
        self.scheduler = _SCHEDULES[settings.schedule](self.optimizer, settings.epochs * self.steps)
        self.history: list[dict[str, float]] = []
        self.weights = self._copy_weights()
        self.best: dict[str, Tensor] = {}
        self.best_elbo, self.best_epoch = -math.inf, 0

    def _parameters(self) -> dict[str, Tensor]:
        """Everything there is to train: the modules' parameters, and those that the programs make when they run."""
        named: dict[str, Tensor] = {name: p for name, p in self.pair.named_parameters() if p.requires_grad}
        pair, first = self.pair, self.data.resolve(self._first_reference())
        with forked_random_state(self.device), evaluating(pair.model, pair.guide):
            x, context, _ = pair.prepare(first.pop("x"), first)
            with poutine.trace(param_only=True) as capture:
                elbo_terms(pair.model, pair.guide, x, context)
            known = {id(p) for p in named.values()}
            for name, site in capture.trace.nodes.items():
                constrained: Any = site["value"]
                value = constrained.unconstrained()
                if id(value) not in known:
                    named[f"{_STORE}{name}"] = value
        if not named:
            raise ValueError("the programs have nothing to train: no pyro.param, pyro.module or nn.Parameter")
        return named

    def _first_reference(self) -> dict[str, Tensor]:
        return next(iter(self.data.references([torch.arange(self.settings.batch_size)])))

    def _execution(self) -> Execution:
        settings, first = self.settings, self._first_reference()
        gradients = Gradients(
            self.pair,
            self.parameters,
            self.data,
            first,
            kl=settings.kl,
            num_particles=settings.num_particles,
            precision=settings.precision,
        )
        execution = Execution(gradients, self.optimizer, settings.max_grad_norm)
        execution.stage(first, compile=settings.compile, num_steps=settings.epochs * self.steps)
        return execution

    def train(self, *, progress: bool) -> pd.DataFrame:
        """Trains what is left to train, and leaves the best weights in the pair."""
        stopped = "finished"
        epochs, done = self.settings.epochs, len(self.history)
        parallel.broadcast([*self.parameters.values(), *self.pair.state_dict().values()])
        self._equal_buffers()
        self.weights = self._copy_weights()
        self.pair.train()
        self.execution = self._execution()
        bar = tqdm(
            total=epochs * self.steps, initial=done * self.steps, disable=not progress, unit="step", dynamic_ncols=True
        )
        try:
            with bar, self.interrupts:
                while len(self.history) < epochs:
                    if self._out_of_patience():
                        stopped = "early"
                        break
                    self._epoch(bar)
        except KeyboardInterrupt:
            stopped = "interrupted"
        if self.best:
            self._set_weights(self.best)
        self.pair.eval()
        history = pd.DataFrame(self.history)
        history.attrs = {
            "stopped": stopped,
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
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        learning_rate, kl_weight, seen = self._learning_rate(), 1.0, 0
        indices = order.split(self.rows_in_step)
        parallel.seed_other_ranks(self.settings.seed, epoch)
        for step, (index, reference) in enumerate(zip(indices, self._references(indices), strict=True)):
            if step % _STEPS_BETWEEN_AGREEMENTS == 0:
                self.interrupts.agree(self.device)
            kl_weight = self._kl_weight((epoch - 1) * self.steps + step)
            sums += self.execution.step(reference, kl_weight, checked=epoch == 1 and step == 0)
            if step in (0, self.steps - 1):
                self._equal_buffers()
            if self.settings.schedule != "plateau":
                self.scheduler.step()
            seen += len(index)
            # Between redraws of the bar nothing is read back from the device.
            if not bar.disable and time.time() - bar.last_print_t >= bar.mininterval:
                bar.set_postfix_str(self._postfix(epoch, sums / seen, started, seen), refresh=False)
            bar.update()
        reconstruction, kl = (sums / seen).tolist()
        seconds = time.perf_counter() - started
        if not math.isfinite(reconstruction - kl):
            self._set_weights(self.weights)
            raise FloatingPointError(
                f"the ELBO became {reconstruction - kl} in epoch {epoch} (reconstruction {reconstruction}, KL {kl}); "
                f"the weights are those of epoch {epoch - 1}: try a lower learning_rate, max_grad_norm=100, or a "
                f"likelihood with a higher floor on its scale"
            )
        row = {"epoch": epoch, "elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if self.valid is not None:
            row |= self._validate(self.valid)
        self.history.append(
            row
            | {
                "kl_weight": kl_weight,
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

    def _kl_weight(self, step: int) -> float:
        warmup = self.settings.kl_warmup * self.steps
        return self.settings.kl_weight * (min(1.0, step / warmup) if warmup else 1.0)

    def _learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _validate(self, valid: Rows) -> dict[str, float]:
        # The same noise after every epoch: the weights alone make the difference.
        terms = elbo_per_row(self.pair, valid, num_rows=self.num_rows, seed=self.settings.seed)
        reconstruction, kl = parallel.from_first_rank([float(term.double().mean()) for term in terms])
        return {
            "validation_elbo": reconstruction - kl,
            "validation_reconstruction": reconstruction,
            "validation_kl": kl,
        }

    def _postfix(self, epoch: int, means: Tensor, started: float, seen: int) -> str:
        reconstruction, kl = means.tolist()
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
        return {**dataclasses.asdict(self.settings), "num_rows": self.num_rows}

    def _write(self, path: Path) -> None:
        optimizer = self.optimizer.state_dict()
        moments = {f"{i}/{key}": value for i, state in optimizer["state"].items() for key, value in state.items()}
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
                    "param_groups": [
                        {key: float(value) if isinstance(value, Tensor) else value for key, value in group.items()}
                        for group in optimizer["param_groups"]
                    ],
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
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.tensors.get("moments", {}).items():
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": saved.numbers["param_groups"]})
        self.scheduler.load_state_dict(saved.numbers["scheduler"])
        self.history = saved.numbers["history"]
        if self.settings.schedule != "plateau":  # another number of ranks takes another number of steps
            self.scheduler.last_epoch = len(self.history) * self.steps
        self.best_epoch, self.best_elbo = saved.numbers["best_epoch"], saved.numbers["best_elbo"]
        self.weights = self._copy_weights()
        self.best = {name: tensor.to(self.device) for name, tensor in saved.tensors.get("best", {}).items()}
        self.order.set_state(saved.tensors["order"]["state"])
        set_random_state(saved.tensors["random"], self.device)
