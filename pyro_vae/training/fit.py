"""Training: :func:`fit` maximises the ELBO, or another objective, of any pair of Pyro programs."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch

from pyro_vae.data.rows import Inputs
from pyro_vae.pair import Pair
from pyro_vae.training.arithmetic import Precision
from pyro_vae.training.execution import Compile
from pyro_vae.training.logs import opened
from pyro_vae.training.run import Run
from pyro_vae.training.settings import OptimizerFactory, Schedule

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["epochs", "fit"]


def fit(
    pair: Pair,
    x_train: Inputs,
    *,
    validation_data: Inputs | None = None,
    objective: Any = None,
    optimizer: OptimizerFactory = torch.optim.Adam,
    epochs: int = 20,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    schedule: Schedule = "cosine",
    max_grad_norm: float | None = None,
    average_weights: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: Precision = "full",
    compile: Compile = "auto",
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool | Literal["learning_rate"] = False,
    num_workers: int = 2,
    log: str | os.PathLike[str] | None = None,
) -> "pd.DataFrame":
    r"""Trains a pair of programs by stochastic variational inference.

    Every step takes ``batch_size`` rows that the epoch has not seen yet, estimates their objective as ``Trace_ELBO``
    does, and takes a step of the optimiser up its gradient. The data stay on the device untransformed; the transform is
    applied to each batch, so dynamic binarisation draws again each time. A last batch of a single row, on any rank,
    joins the one before it, because batch norm needs a variance.

    If a process group of ``torch.distributed`` is initialised and every rank calls this with the same arguments, the
    ranks train together. A step takes ``batch_size`` rows on each rank, with separate noise, and goes up the gradient
    of the objective over all of them. All ranks end with the same weights and history. Rank 0 writes the checkpoint,
    from which any number of ranks can resume.

    Args:
        pair: A :class:`~pyro_vae.VAE`, or any :class:`~pyro_vae.Pair`. It is trained in place.
        x_train: Rows ``(N, *E)`` in the user's units; or a mapping of ``"x"`` and the programs' keyword arguments. Data
            larger than memory are streamed: from a memory-mapped array (``np.load(path, mmap_mode="r")``) or a
            ``torch.utils.data.Dataset`` of rows or such mappings.
        validation_data: Rows that are never trained on. After each epoch their ELBO is estimated, always with the same
            noise, and the weights with the highest one are kept.
        objective: The objective to maximise, by default :class:`~pyro_vae.Elbo`. Any ELBO object of ``pyro.infer``
            works too: ``Trace_ELBO``, ``TraceMeanField_ELBO`` and ``TraceEnum_ELBO`` are replaced by the equivalent
            ``Elbo``, others run unchanged on the programs. Or a function of draws, see
            :mod:`pyro_vae.inference.objectives`.
        optimizer: A class of ``torch.optim``, or a function with the same call: ``optimizer(parameters, lr=...)``. By
            default Adam (Kingma & Ba, 2015).
        epochs: Number of passes over all rows.
        batch_size: Rows in a step, on each rank; the last step of an epoch takes the rest. By default 128, or all rows
            if there are fewer.
        learning_rate: The step size at the start.
        schedule: ``"cosine"`` keeps it for half of the run and decays it to zero along a cosine over the other half,
            ``"constant"`` keeps it, ``"plateau"`` halves it when the validation ELBO (without validation data, the
            training ELBO) has not risen for five epochs.
        max_grad_norm: Bound on the norm of the whole gradient, in nats per datum.
        average_weights: Decay of an exponential moving average of the weights over steps, such as 0.999 (Polyak &
            Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992). The average is validated, kept as
            the best, and left in the pair. Steps are taken from the weights themselves, which also give the ELBO of the
            training rows. Buffers are not averaged.
        patience: Stop when the validation ELBO has not risen for this many epochs.
        seed: Seeds the order of the rows, the noise and the transform. The caller's random state is not changed.
        device: ``"auto"`` is CUDA if available, else XPU, else the CPU. Apple's MPS is refused: it has no float64,
            which the data need to keep their digits. Steps are captured on CUDA only.
        precision: Precision of matrix products, convolutions and recurrent networks. ``"full"`` is that of the weights,
            even where torch would use less by default, as cuDNN does in convolutions; ``"tf32"`` lets a GPU round
            factors to 10 bits; ``"bfloat16"`` rounds factors to 8 bits. Nothing else is rounded, in particular not
            distributions or validation. Torch's settings are restored between epochs; during an epoch, convolutions on
            a GPU are deterministic.
        compile: ``True`` runs the programs once, records their graph, and trains the compiled graph; ``"auto"``
            compiles it if there are enough steps to repay the time. On a GPU both capture the graph, compiled or not.
            ``False`` runs the programs at every step. The numbers are the same up to rounding: if a graph would not
            match the programs, training runs the programs, and one warning says why.
        progress: Show a progress bar.
        checkpoint: File to which the run's state is written after each epoch.
        resume: Continue from the file ``checkpoint``, with the same numbers as a run that was never stopped. Other
            data, another order of the data, or other settings are refused. ``"learning_rate"`` continues with the
            learning rate given here instead of the run's; the history records it.
        num_workers: Number of processes that read streamed data.
        log: Folder to which each row of the history is written for TensorBoard (``pip install
            'pyro-vae[tracking]'``), during the run.

    Returns:
        A table with one row per epoch: ``epoch``; ``elbo``, ``reconstruction`` and ``kl`` over the training rows, with
        ``elbo = reconstruction - kl``, in nats per datum, in the user's units, without any scale or weight that
        training applies; ``objective``, the maximised objective, with them; ``auxiliary``, if the guide observes a
        site; the first three with the prefix ``validation_``; ``kl_weight``, if the objective has one,
        ``learning_rate``, ``seconds`` and ``rows_per_second``. ``history.attrs`` has more: ``"stopped"`` says why
        training ended: ``"finished"``, ``"early"`` or ``"interrupted"`` (by Ctrl-C, which keeps the weights reached);
        ``"best_epoch"`` is the epoch whose weights were kept, if there are validation data; ``"execution"`` says how
        steps were run, and why; ``"closed_form"`` lists the latent sites whose KL was computed in closed form; and
        ``"changes"`` lists what changed when the run was resumed.

    Raises:
        ValueError: if the data or an argument are invalid, or the programs break the contract, before training starts.
        TypeError: if neither program takes a keyword argument, or a number is none.
        FloatingPointError: if the objective becomes NaN or infinite; the weights of the last complete epoch are
            restored.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=1, hidden_dims=(), likelihood=Normal())
        >>> history = fit(vae, torch.randn(256, 3), epochs=2, progress=False)
        >>> len(history), history.attrs["stopped"]
        (2, 'finished')
    """
    arguments = {name: value for name, value in locals().items() if name not in ("pair", "x_train", "log")}
    with opened(log) as write:
        run = Run.start(pair, x_train, **arguments)
        for epoch in run.epochs():
            write(epoch)
    return run.table()


def epochs(pair: Pair, x_train: Inputs, **arguments: Any) -> Iterator[dict[str, float]]:
    r"""The loop of :func:`fit` as an iterator: trains an epoch at a time and yields its row of the history.

    Between epochs the pair is in evaluation mode and the caller's random state is restored: log, draw, change weights,
    or leave the loop. With ``average_weights`` the pair then has the averages, and changes to them are lost. With
    ``validation_data``, the pair has the best weights after the loop, however it ends.

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
    given = {name: value for name, value in (fit.__kwdefaults__ or {}).items() if name != "log"}
    yield from Run.start(pair, x_train, **{**given, **arguments}).epochs()
