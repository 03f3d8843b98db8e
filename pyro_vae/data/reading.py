"""Reads batches of a user's data set, and passes its errors from the reading process to the training process."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor
from torch.utils.data import Dataset, default_collate

__all__ = ["Failure", "Reader"]


@dataclass(frozen=True)
class Failure:
    """An error in reading a batch, returned in its place: an exception would arrive as the text of a traceback.

    Args:
        sentence: The message.
        cause: The exception, if it can be pickled.
    """

    sentence: str
    cause: Exception | None

    def reraise(self) -> NoReturn:
        """Raises the error in the process that asked for the batch."""
        raise ValueError(self.sentence) from self.cause


class Reader(Dataset):
    """Whole batches of a data set, collated from its items unless it makes batches itself.

    Args:
        dataset: Its items are rows, or mappings of them; ``__getitems__``, if it has that method, returns many at once,
            as a list or a batch.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """The batch, or a :class:`Failure`."""
        which = f"{len(indices)} rows at once"
        try:
            if callable(getattr(self.dataset, "__getitems__", None)):
                batch = self.dataset.__getitems__(indices)
            else:
                batch = []
                for index in indices:
                    which = f"row {index}"
                    batch.append(self.dataset[index])
                which = "a batch of rows"
            return batch if isinstance(batch, (Tensor, Mapping)) else default_collate(batch)
        except Exception as error:
            return Failure(_sentence(error, type(self.dataset), which), _portable(error))


def _sentence(error: Exception, data_set: type, which: str) -> str:
    reason = " ".join(str(error).split())
    if data_set.__module__.startswith("pyro_vae.") and isinstance(error, ValueError):
        return reason  # our own, which is complete
    said = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"the data set, a {data_set.__name__}, could not give {which} ({said})"


def _portable(error: Exception) -> Exception | None:
    """The exception, if it can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error
