"""A closer look at every step, for traces and replays. Without a probe nothing of this is computed or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.feed import Board
from twinrun.diffusion.forward import BlockForward
from twinrun.models.parts import Slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The state in front of a step. All of it is live and changes in the step: copy what is to be kept.

    Attributes:
        index: number of the forward in the run.
        block: number of the block.
        step: number inside the block.
        full: whether the whole canvas will be computed.
        rows: which prompts of the batch the rows of the canvas are (rows that have ended are dropped).
        canvas: tokens, positions, what is open.
        columns: canvas columns of the block.
        board: newest proposals, and what the last step committed.
        slots: keys and values (`slots.copy()`); None without a cache.
        forward: the strategy of cached steps with its state (`copy.deepcopy`).
    """

    index: int
    block: int
    step: int
    full: bool
    rows: Sequence[int]
    canvas: Canvas
    columns: slice
    board: Board
    slots: Slots | None
    forward: BlockForward


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """What a step computed and decided. Tensors are its own, nobody writes to them afterwards.

    Attributes:
        columns: canvas columns that were computed.
        rows: which tokens of these columns hold the block's logits.
        hidden: `[rows, tokens, width]` behind the last layer, of all computed columns.
        layers: inputs of all layers and the last output, `[rows, tokens, width]`; empty unless asked for.
        at: row and block column of each position for which logits were computed, two `[n]` int64.
        logits: `[n, vocab]`, the mask id banned (-inf).
        tokens: `[rows, block]` int64, newest proposals.
        confidence: `[rows, block]` float64.
        chosen: `[rows, block]` booleans: what this step commits.
        fresh: `[rows, tokens]` booleans: whose hidden state is new; None is all.
        notes: what a skip policy says of its decision.
    """

    columns: slice
    rows: slice
    hidden: Tensor
    layers: Sequence[Tensor]
    at: tuple[Tensor, Tensor]
    logits: Tensor
    tokens: Tensor
    confidence: Tensor
    chosen: Tensor
    fresh: Tensor | None
    notes: Mapping[str, Tensor]


@runtime_checkable
class Probe(Protocol):
    """What a closer observer implements."""

    wants_layers: bool
    """Whether hidden states of all layers are to be collected."""

    def before(self, state: Before) -> None:
        """Called in front of every step."""

    def after(self, outcome: After) -> None:
        """Called behind it, before the commit is written to the canvas."""
