"""The history of a training, written for TensorBoard as it goes."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping

from pyro_vae.training.parallel import rank

__all__ = ["opened"]


@contextlib.contextmanager
def opened(folder: str | os.PathLike[str] | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """What writes a row of the history: numbers by name, at the step of their epoch. Rank 0 alone writes.

    Args:
        folder: Where TensorBoard reads; None to write nothing.

    Raises:
        ImportError: if TensorBoard is not installed, with the command that does it.
    """
    if folder is None or rank() > 0:
        yield lambda epoch: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("a log is written for TensorBoard: pip install 'pyro-vae[tracking]'") from error
    with contextlib.ExitStack() as stack:

        @functools.cache
        def writer() -> SummaryWriter:  # which makes the folder, so not before an epoch is done
            return stack.enter_context(SummaryWriter(os.fspath(folder)))

        def write(epoch: Mapping[str, float]) -> None:
            for name, value in epoch.items():
                if name != "epoch":
                    writer().add_scalar(name, value, int(epoch["epoch"]))
            writer().flush()

        yield write
