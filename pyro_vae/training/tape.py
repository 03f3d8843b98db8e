"""The inputs of an epoch's steps, on the device before the steps: then a step in a CUDA graph needs no host.

Its rows, its fraction of the training and its step sizes are lines of a :class:`Tape`, which the step itself advances.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Tape"]


class Tape:
    """The inputs of an epoch's steps on the device, one line per step.

    Args:
        num_steps: Number of lines.
        num_rates: Number of step sizes in a line, one for each group of parameters.
        inputs: An example of a step's tensors other than its fraction of the training.
        by_index: Whether these are indices of rows, which become lines of the tape; other tensors are copied to the
            same place before every launch.

    Example:
        >>> tape = Tape(2, 1, [torch.tensor([0, 0, 0])], by_index=True)
        >>> tape.fill([0.0, 0.5], [[1e-3], [1e-4]], [torch.tensor([4, 1, 2]), torch.tensor([0, 3, 5])])
        >>> tape.wind(1, [])
        >>> tape.read()
        (tensor(0.5000), tensor([1.0000e-04]), [tensor([0, 3, 5])])
    """

    def __init__(self, num_steps: int, num_rates: int, inputs: Sequence[Tensor], *, by_index: bool) -> None:
        device = inputs[0].device
        self.by_index, self.at = by_index, 0  # the line that the next launch will read, on the host
        self._at = torch.zeros((1,), dtype=torch.long, device=device)
        self._shares = torch.zeros((num_steps,), device=device)
        self._rates = torch.zeros((num_steps, num_rates), device=device)
        self._rows = [tensor.new_zeros((num_steps, *tensor.shape)) if by_index else tensor.clone() for tensor in inputs]

    def fill(self, shares: Sequence[float], rates: Sequence[Sequence[float]], indices: Sequence[Tensor]) -> None:
        """Writes the lines of an epoch, with the indices if rows are given by them."""
        self._shares.copy_(torch.tensor(shares))
        self._rates.copy_(torch.tensor(rates))
        if self.by_index:
            self._rows[0].copy_(torch.stack(list(indices)))

    def wind(self, position: int, tensors: Sequence[Tensor]) -> None:
        """Goes to a line, if it is not there already, and copies the step's tensors if they are not on the tape."""
        if self.at != position:
            self._at.fill_(position)
            self.at = position
        if not self.by_index:
            for place, tensor in zip(self._rows, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)

    def read(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The line: the fraction of the training that is done, the step sizes, the tensors. Part of the recording."""
        share, rates = (table.index_select(0, self._at)[0] for table in (self._shares, self._rates))
        rows = [table.index_select(0, self._at)[0] for table in self._rows] if self.by_index else self._rows
        return share, rates, rows

    def wind_on(self) -> None:
        """Goes to the next line; part of the recording."""
        self._at += 1
