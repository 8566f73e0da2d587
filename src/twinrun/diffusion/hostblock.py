"""What the host knows of the block being filled in, kept up to date by one copy a step from the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.errors import NonFiniteError


class Committed(NamedTuple):
    """What a step committed in one row."""

    positions: list[int]
    tokens: list[int]
    confidence: list[float]


@dataclass(slots=True, kw_only=True)
class HostBlock:
    """Tokens of a block, which of them are open, and their absolute positions, `[rows, block]` all.

    On a CPU the first two are the canvas itself, which the commit of a step has already changed.
    """

    text: Tensor
    open: Tensor
    positions: list[list[int]]
    ends: frozenset[int]
    shared: bool
    _has_end: bool = field(init=False)

    def __post_init__(self) -> None:
        """See whether an end stands in the block already."""
        closed = self.text[~self.open].tolist() if self.ends else []
        self._has_end = not self.ends.isdisjoint(closed)

    @classmethod
    def of(cls, canvas: Canvas, block: slice, ends: Iterable[int] = ()) -> HostBlock:
        """Read the block from the canvas; `ends` are ids that end a text."""
        shared = canvas.ids.device.type == "cpu"
        return cls(
            text=canvas.ids[:, block].cpu(),
            open=canvas.open[:, block].cpu(),
            positions=canvas.positions[:, block].tolist(),
            ends=frozenset(ends),
            shared=shared,
        )

    def commit(self, chosen: Tensor, tokens: Tensor, confidence: Tensor) -> list[Committed]:
        """Take over what was committed, `[rows, block]` all, behind the canvas; list it for each row, in order.

        Raises:
            NonFiniteError: a committed token has no probability, because the logits hold NaN.
        """
        if not self.shared:
            self.text = torch.where(chosen, tokens, self.text)
            self.open &= ~chosen
        found = [Committed([], [], []) for _ in self.positions]
        at = chosen.nonzero(as_tuple=True)
        values = (part.tolist() for part in (*at, tokens[at], confidence[at]))
        for row, column, token, sure in zip(*values, strict=True):
            if sure != sure:
                raise NonFiniteError(
                    "the logits of a masked position hold NaN; run the model one precision up (twinrun verify)"
                )
            mine = found[row]
            mine.positions.append(self.positions[row][column])
            mine.tokens.append(token)
            mine.confidence.append(sure)
            self._has_end = self._has_end or token in self.ends
        return found

    def ended(self) -> list[tuple[int, int]]:
        """Rows that end in this block: their first end token has nothing open before it.

        Returns:
            Row and block column of the end token. A row that was closed already is named again.
        """
        if not self._has_end:
            return []
        is_end = torch.isin(self.text, torch.tensor(sorted(self.ends))) & ~self.open
        if not bool(is_end.any()):
            return []
        width = self.text.shape[1]
        first_end = torch.where(is_end.any(1), is_end.int().argmax(1), width)
        first_open = torch.where(self.open.any(1), self.open.int().argmax(1), width)
        return [(row, int(first_end[row])) for row in (first_end < first_open).nonzero()[:, 0].tolist()]
