"""The canvas of a masked-diffusion model: prompts, and behind each of them masks that are filled in.

Rows of unequal prompts are padded on the left, so that the generation area begins in the same column in every row. A
column is where a token stands in the tensor; a position is where it stands in its own row, padding not counted, and
is what the model is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Canvas:
    """Tokens of a batch, and which of them are still to be decided. Changed in place while decoding.

    Attributes:
        ids: `[rows, width]` int64.
        positions: `[rows, width]` int64, absolute, padding not counted (padded columns hold 0 or go on counting).
        mask: `[rows, 1, 1, width]` booleans, True where a key is a real token; None where no row is padded.
        open: `[rows, width]` booleans, True where a mask of the generation area is not yet decided. It is kept apart
            from `ids`: a mask id inside a prompt is text, and a committed token is final whatever its id is.
        start: first column of the generation area.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | None
    open: Tensor
    start: int

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        room: int | Sequence[int],
        *,
        mask_id: int,
        pad_id: int,
        device: torch.device | str = "cpu",
    ) -> Canvas:
        """Lay out prompts with `room` masks behind them, one number for all rows or one a row.

        Rows with less room than the widest are padded on the right, which no token attends to.

        Example:
            >>> canvas = Canvas.of([[7, 8, 9], [5]], 2, mask_id=1, pad_id=0)
            >>> canvas.ids.tolist(), canvas.positions.tolist()
            ([[7, 8, 9, 1, 1], [0, 0, 5, 1, 1]], [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
        """
        rooms = [room] * len(prompts) if isinstance(room, int) else list(room)
        start, most = max(map(len, prompts)), max(rooms)
        ids, real = [], []
        for prompt, own in zip(prompts, rooms, strict=True):
            left, right = start - len(prompt), most - own
            ids.append([pad_id] * left + list(prompt) + [mask_id] * own + [pad_id] * right)
            real.append([False] * left + [True] * (len(prompt) + own) + [False] * right)
        known = torch.tensor(real)
        opened = known.clone()
        opened[:, :start] = False
        return cls(
            ids=torch.tensor(ids, device=device),
            positions=(known.long().cumsum(1) - 1).clamp_min(0).to(device),
            mask=None if bool(known.all()) else known[:, None, None].to(device),
            open=opened.to(device),
            start=start,
        )

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.ids.shape[1])

    def blocks(self, length: int) -> list[slice]:
        """Columns of the blocks of the generation area, left to right; the last may be shorter."""
        return [slice(i, min(i + length, self.width)) for i in range(self.start, self.width, length)]

    def commit(self, block: slice, chosen: Tensor, tokens: Tensor) -> None:
        """Write `tokens` where `chosen`, both `[rows, block]`, and close these positions. Open positions only."""
        self.ids[:, block] = torch.where(chosen, tokens, self.ids[:, block])
        self.open[:, block] &= ~chosen

    def close(self, row: int, column: int, token: int) -> None:
        """Fill a row from `column` on with `token`: what comes behind the end of a text."""
        self.ids[row, column:] = token
        self.open[row] = False

    def columns(self, keep: Tensor) -> Canvas:
        """Return a canvas of some columns, ascending `[columns]` int64, in memory of its own; positions stay."""
        at = keep.to(self.ids.device)
        return Canvas(
            ids=self.ids[:, at],
            positions=self.positions[:, at],
            mask=None if self.mask is None else self.mask[..., at],
            open=self.open[:, at],
            start=self.start,
        )

    def rows(self, keep: Sequence[int]) -> Canvas:
        """Return a canvas of some rows, in memory of its own."""
        at = torch.tensor(list(keep), device=self.ids.device)
        return Canvas(
            ids=self.ids[at],
            positions=self.positions[at],
            mask=None if self.mask is None else self.mask[at],
            open=self.open[at],
            start=self.start,
        )
