"""What one forward is fed: some columns of a canvas, where their keys and values go, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.models.parts import Rotary, Slots


@dataclass(slots=True)
class Board:
    """What is known of one block between its steps; a new one begins with every block.

    Attributes:
        tokens: `[rows, block]` int64, the newest proposal for each position.
        confidence: `[rows, block]` float64, its probability; NaN where nothing was proposed yet. A position keeps the
            last one when it is committed.
        chosen: `[rows, block]` booleans, what the step before this one committed.
    """

    tokens: Tensor
    confidence: Tensor
    chosen: Tensor

    @classmethod
    def of(cls, canvas: Canvas, block: slice) -> Board:
        """Begin a block."""
        ids = canvas.ids[:, block]
        return cls(
            tokens=ids.clone(),
            confidence=torch.full(ids.shape, torch.nan, dtype=torch.float64, device=ids.device),
            chosen=torch.zeros_like(ids, dtype=torch.bool),
        )


@dataclass(slots=True, kw_only=True)
class Feed:
    """The tokens of one forward: contiguous columns of a canvas, `[rows, tokens]`.

    Attributes:
        canvas: what the columns belong to.
        columns: canvas columns that are computed.
        block: canvas columns of the block that is being filled in.
        full: whether this is a full forward, which renews all slots.
        lead: 1 for a model whose logits are shifted (the row before a position holds its logits), else 0.
        rotary: cosines and sines of these tokens' absolute positions.
        slots: keys and values of the whole canvas; None without a cache.
        board: what is known of the block.
        step: number of this step inside its block, from 0.
        layers: where to put the input of every layer and then the output of the last, each `[rows, tokens, width]`;
            None if nobody asks.
    """

    canvas: Canvas
    columns: slice
    block: slice
    full: bool
    lead: int
    rotary: Rotary
    slots: Slots | None
    board: Board
    step: int
    layers: list[Tensor] | None = field(default=None)

    @property
    def ids(self) -> Tensor:
        """`[rows, tokens]` int64."""
        return self.canvas.ids[:, self.columns]

    @property
    def positions(self) -> Tensor:
        """`[rows, tokens]` int64, absolute, padding not counted."""
        return self.canvas.positions[:, self.columns]

    @property
    def mask(self) -> Tensor | None:
        """Keys that are real tokens, `[rows, 1, 1, width of the canvas]`; None where all are."""
        return self.canvas.mask

    @property
    def open(self) -> Tensor:
        """`[rows, tokens]` booleans: still to be decided (in the block, or behind it)."""
        return self.canvas.open[:, self.columns]

    @property
    def active(self) -> Tensor:
        """`[rows]` booleans: rows whose block has an open position; what others compute is never used."""
        return self.canvas.open[:, self.block].any(1)

    @property
    def changed(self) -> Tensor:
        """`[rows, tokens]` booleans: committed by the step before this one."""
        return self._spread(self.board.chosen, False)

    @property
    def confidence(self) -> Tensor:
        """`[rows, tokens]` float64: newest probability of each token's proposal, NaN where there is none."""
        return self._spread(self.board.confidence, torch.nan)

    @property
    def rows(self) -> slice:
        """Which of the tokens hold the logits of the block's positions."""
        first = self.block.start - self.lead - self.columns.start
        return slice(first, first + self.block.stop - self.block.start)

    def _spread(self, of_block: Tensor, elsewhere: float | bool) -> Tensor:
        before = self.block.start - self.columns.start
        spread = of_block.new_full((of_block.shape[0], self.columns.stop - self.columns.start), elsewhere)
        spread[:, before : before + of_block.shape[1]] = of_block
        return spread
