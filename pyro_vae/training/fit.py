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

    Every step takes ``batch_size`` rows that the epoch has not seen, estimates their objective as ``Trace_ELBO`` does,
    and takes a step of the optimiser up its gradient. The data stay on the device as they came; the transform is
    applied to each batch, so dynamic binarisation draws again each time. A last batch of a single row, on any rank,
    joins the one before it, for batch norm has no variance of one row.

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
        batch_size: Rows in a step, on each rank; the last step of an epoch takes what is left. By default 128, or all
            rows where there are fewer.
        learning_rate: The step size at the start.
        schedule: ``"cosine"`` keeps it for half of the run and lets it fall to zero along a cosine over the
            other half, ``"constant"`` keeps it, ``"plateau"`` halves it when the validation (without any, the
            training) ELBO has not risen for five epochs.
        max_grad_norm: Bound on the norm of the whole gradient, in nats per datum.
        average_weights: Have an average of the weights after each step, in which those of one step count this much less
            than those of the next, such as 0.999 (Polyak & Juditsky, *Acceleration of Stochastic Approximation by
            Averaging*, 1992). It is what is validated, kept as the best, and left in the pair; steps are taken from the
            weights themselves, and the training rows' ELBO is theirs. Buffers are not averaged.
        patience: Stop when the validation ELBO has not risen for this many epochs.
        seed: Seeds the order of the rows, the noise and the transform. The caller's random state is left alone.
        device: ``"auto"`` is CUDA where there is one, else XPU, else the CPU. Apple's MPS is refused: it has no
            float64, in which data keep their digits. Steps are captured on CUDA alone.
        precision: Of matrix products, convolutions and recurrent networks: ``"full"`` is that of the weights, also
            where torch by itself would take less, as cuDNN does in convolutions; ``"tf32"`` lets a GPU round factors to
            10 bits; ``"bfloat16"`` has factors of 8 bits. All else, distributions and validation first, is never
            rounded. Torch's settings are put back between epochs; on a GPU convolutions are deterministic meanwhile.
        compile: ``True`` runs the programs once and trains the graph of what they did, compiled; ``"auto"`` compiles it
            where there are steps enough to repay that. On a GPU both capture it, compiled or not. ``False`` runs the
            programs at every step. The numbers are the same up to rounding: where a graph would not be what the
            programs do, training runs the programs, and one warning says why.
        progress: Show a progress bar.
        checkpoint: File to which the run's state is written after each epoch.
        resume: Go on from the file ``checkpoint``, to the same numbers as a run that was never stopped. Other data, in
            another order, or other settings are refused. ``"learning_rate"`` goes on with the one given here in the
            place of the run's; the history has it.
        num_workers: Processes that read what is streamed.
        log: Folder to which each row of the history is written for TensorBoard (``pip install
            'pyro-vae[tracking]'``), as the run goes.

    Returns:
        A table with one row an epoch: ``epoch``; ``elbo``, ``reconstruction`` and ``kl`` over the training rows, with
        ``elbo = reconstruction - kl``, in nats per datum, in the user's units, without any scale or weight that
        training puts on them; ``objective``, what was maximised, with them; ``auxiliary``, if the guide observes
        something; the first three with the prefix ``validation_``; ``kl_weight``, if the objective has one,
        ``learning_rate``, ``seconds`` and ``rows_per_second``.
        ``history.attrs["stopped"]`` says why it ended: ``"finished"``, ``"early"`` or ``"interrupted"`` (Ctrl-C, which
        keeps what has been learned), ``history.attrs["best_epoch"]`` which epoch's weights were kept, if
        there are validation data, ``history.attrs["execution"]`` how steps were run, and why,
        ``history.attrs["closed_form"]`` at which latent sites the KL was taken in closed form, and
        ``history.attrs["changes"]`` what was changed when the run was resumed.

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
    arguments = {name: value for name, value in locals().items() if name not in ("pair", "x_train", "log")}
    with opened(log) as write:
        run = Run.start(pair, x_train, **arguments)
        for epoch in run.epochs():
            write(epoch)
    return run.table()


def epochs(pair: Pair, x_train: Inputs, **arguments: Any) -> Iterator[dict[str, float]]:
    r"""The loop of :func:`fit`, to be used: trains an epoch at a time, and yields its row of the history.

    Between epochs the pair is in evaluation mode, and the caller's random state is in force: log, draw, change weights,
    or leave the loop. With ``average_weights`` the pair has the averages there, and changes to them are not kept.
    At its end, however it comes, the best weights are in the pair if there are ``validation_data``.

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
