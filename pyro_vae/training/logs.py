"""Writing the training history for TensorBoard during a run."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping

from pyro_vae.training.parallel import rank

__all__ = ["opened"]


@contextlib.contextmanager
def opened(folder: str | os.PathLike[str] | None) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Yields a function that writes a row of the history: numbers by name, at their epoch. Only rank 0 writes.

    Args:
        folder: The folder for TensorBoard; None to write nothing.

    Raises:
        ImportError: if TensorBoard is not installed, with the command that installs it.
    """
    if folder is None or rank() > 0:
        yield lambda epoch: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("log needs TensorBoard: pip install 'pyro-vae[tracking]'") from error
    with contextlib.ExitStack() as stack:

        @functools.cache
        def writer() -> SummaryWriter:  # creates the folder, so not before the first epoch ends
            return stack.enter_context(SummaryWriter(os.fspath(folder)))

        def write(epoch: Mapping[str, float]) -> None:
            for name, value in epoch.items():
                if name != "epoch":
                    writer().add_scalar(name, value, int(epoch["epoch"]))
            writer().flush()

        yield write
