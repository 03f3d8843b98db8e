"""Batches of a user's data set, and its errors brought from the process that reads to the one that trains."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor
from torch.utils.data import Dataset, default_collate

__all__ = ["Failure", "Reader"]


@dataclass(frozen=True)
class Failure:
    """What went wrong in reading a batch, in the place of that batch: an exception would come as a traceback's text.

    Args:
        sentence: What to say.
        cause: The exception, where it could be brought along.
    """

    sentence: str
    cause: Exception | None

    def reraise(self) -> NoReturn:
        """Raises it where the batch was wanted."""
        raise ValueError(self.sentence) from self.cause


class Reader(Dataset):
    """Whole batches of a data set, put together from its items unless it makes them itself.

    Args:
        dataset: Items are rows, or mappings of them; with ``__getitems__`` it gives many at once, as a list or a batch.
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
        return reason  # our own, which says all
    said = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"the data set, a {data_set.__name__}, could not give {which} ({said})"


def _portable(error: Exception) -> Exception | None:
    """The exception, if another process can be given it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error
