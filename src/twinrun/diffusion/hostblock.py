"""What the host knows of the block being filled in, kept up to date by one copy a step from the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas


class Committed(NamedTuple):
    """What a step committed in one row."""

    positions: list[int]
    tokens: list[int]
    confidence: list[float]


@dataclass(slots=True)
class HostBlock:
    """Tokens of a block, which of them are open, and their absolute positions: three `[rows, block]` on the host."""

    text: Tensor
    open: Tensor
    positions: Tensor

    @classmethod
    def of(cls, canvas: Canvas, block: slice) -> HostBlock:
        """Read the block from the canvas."""
        found = (t[:, block].cpu().clone() for t in (canvas.ids, canvas.open, canvas.positions))
        return cls(*found)

    def commit(self, chosen: Tensor, tokens: Tensor) -> None:
        """Take over what was committed, `[rows, block]` both."""
        self.text = torch.where(chosen, tokens, self.text)
        self.open &= ~chosen

    def committed(self, chosen: Tensor, confidence: Tensor) -> list[Committed]:
        """List what was chosen in each row, positions ascending."""
        counts = chosen.sum(1).tolist()
        parts = (torch.split(t[chosen], counts) for t in (self.positions, self.text, confidence))
        return [Committed(*(part.tolist() for part in row)) for row in zip(*parts, strict=True)]

    def ended(self, ends: Tensor) -> list[tuple[int, int]]:
        """Rows that end in this block: their first end token has nothing open before it.

        Args:
            ends: ids that end a text, `[n]`.

        Returns:
            Row and block column of the end token. A row that was closed already is named again.
        """
        if not len(ends):
            return []
        is_end = torch.isin(self.text, ends) & ~self.open
        if not bool(is_end.any()):
            return []
        width = self.text.shape[1]
        first_end = torch.where(is_end.any(1), is_end.int().argmax(1), width)
        first_open = torch.where(self.open.any(1), self.open.int().argmax(1), width)
        return [(row, int(first_end[row])) for row in (first_end < first_open).nonzero()[:, 0].tolist()]
