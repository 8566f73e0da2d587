"""The forwards that fill in one canvas: which columns each step computes, and what it reuses.

Caches differ in nothing but the columns of the steps between two full forwards: all of them (none), the block and what
is behind it (prefix), or the block (dual). Keys and values of the other columns are those of the last full forward.
A model whose logits are shifted has the logits of the block's first position in the row before the block. That row
is computed with the block: kept from the full forward it would not see what the block commits, and its position
would be proposed from a state in which nothing was decided.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.delay import DelayedCache
from twinrun.diffusion.feed import Board, Feed
from twinrun.diffusion.forward import AllTokens, BlockForward, Passed, run_layers
from twinrun.diffusion.rule import is_refresh
from twinrun.diffusion.settings import DiffusionSettings
from twinrun.models.parts import Parts, Rotary, Slots


class Passes:
    """Runs the steps of a canvas, block by block: `begin` a block, then `step` until it is filled in.

    Attributes:
        full: full forwards so far.
        partial: forwards over a part of the canvas so far.
        canvas: what the forwards see: the whole canvas, or the columns that suffix dropout has left of it.
        block: columns of the current block, the same in both.
        slots: keys and values of the canvas; None without a cache.
    """

    def __init__(self, parts: Parts, settings: DiffusionSettings, *, lead: int = 0) -> None:
        """Start a run. `lead` is 1 for a model with shifted logits."""
        self._parts, self._settings, self.lead = parts, settings, lead
        policy = settings.skip or (DelayedCache() if settings.delay else None)
        self.forward: BlockForward = policy.start(parts) if policy else AllTokens(parts)
        self.full = self.partial = 0

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self._parts.num_layers

    def begin(self, canvas: Canvas, block: slice) -> Board:
        """Begin a block of a canvas; nothing of the block before is used again."""
        seen = self._thinned(canvas, block)
        is_new = getattr(self, "canvas", None) is not seen
        self.canvas, self.block, self._whole = seen, block, canvas
        if is_new:
            self._rotary = self._parts.rotary(self._parts.embed(seen.ids[:, :1]), seen.positions)
            self._cut: dict[tuple[int, int], Rotary] = {}
            self.slots = None if self._settings.cache == "none" else Slots(seen.width)
        self.forward.begin()
        self.board = Board.of(seen, block)
        return self.board

    def _thinned(self, canvas: Canvas, block: slice) -> Canvas:
        """The columns that take part: all, or some of those behind the block are left out."""
        window = self._settings.suffix_window
        if window is None:
            return canvas
        kept = torch.ones(canvas.width, dtype=torch.bool)
        number = (block.start - canvas.start) // self._settings.block_length
        kept[block.stop :] = window.keep(canvas.width - block.stop, number)
        return canvas.columns(kept.nonzero()[:, 0])

    def commit(self, chosen: Tensor, tokens: Tensor) -> None:
        """Write `tokens` where `chosen`, both `[rows, block]`, and close these positions."""
        self.board.chosen = chosen
        for canvas in self._canvases():
            canvas.commit(self.block, chosen, tokens)

    def close(self, row: int, column: int, token: int) -> None:
        """Fill a row from canvas column `column` on with `token`; the column lies in the block or next to it."""
        for canvas in self._canvases():
            canvas.close(row, column, token)

    def _canvases(self) -> list[Canvas]:
        return [self.canvas] if self.canvas is self._whole else [self.canvas, self._whole]

    def is_full(self, step: int) -> bool:
        """Whether a step of a block is a full forward."""
        return self.slots is None or is_refresh(step, self._settings.refresh_every)

    def feed(self, step: int, layers: list[Tensor] | None = None, *, full: bool) -> Feed:
        """What a step is fed: the whole canvas, or the columns that the cache computes again."""
        columns = slice(0, self.canvas.width) if full else self._columns()
        return Feed(
            canvas=self.canvas,
            columns=columns,
            block=self.block,
            full=full,
            lead=self.lead,
            rotary=self._rotary_of(columns),
            slots=self.slots,
            board=self.board,
            step=step,
            layers=layers,
        )

    def _rotary_of(self, columns: slice) -> Rotary:
        """Tables of some columns: the same object for all steps that compute them."""
        key = columns.start, columns.stop
        if key not in self._cut:
            cos, sin = self._rotary
            self._cut[key] = cos[:, columns], sin[:, columns]
        return self._cut[key]

    def step(self, step: int, layers: list[Tensor] | None = None) -> tuple[Feed, Passed]:
        """Run one step of the block.

        Args:
            step: number inside the block, from 0.
            layers: filled with the hidden states of all layers if given; see `Feed.layers`.

        Returns:
            What was fed, and what came out; `feed.rows` are the rows with the block's logits.
        """
        if not self.is_full(step):
            self.partial += 1
            feed = self.feed(step, layers, full=False)
            return feed, self.forward(feed)
        self.full += 1
        wanted = [] if layers is None and self.forward.wants_layers else layers
        feed = self.feed(step, wanted, full=True)
        hidden = run_layers(self._parts, feed)
        if self.slots is not None:
            later = self.feed(step, full=False)
            self.forward.after_full(later, wanted or ())
        return feed, Passed(hidden=hidden)

    def _columns(self) -> slice:
        stop = self.block.stop if self._settings.cache == "dual" else self.canvas.width
        return slice(self.block.start - self.lead, stop)
