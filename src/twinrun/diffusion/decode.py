"""The free-running loop: block by block, a forward, proposals, a commit, until no position is open."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.chooser import Chooser, to_host
from twinrun.diffusion.feed import Feed
from twinrun.diffusion.forward import Passed
from twinrun.diffusion.hostblock import Committed, HostBlock
from twinrun.diffusion.passes import Passes
from twinrun.diffusion.probe import After, Before, Probe
from twinrun.records.diffusion_run import DiffusionObserver, DiffusionStep


@dataclass(slots=True, kw_only=True)
class Decode:
    """One run. `rows` are the prompts that are still on the canvas; ended ones leave it at the next block.

    Attributes:
        canvas: where it happens.
        passes: runs the forwards.
        chooser: proposes and chooses.
        block_length: tokens of a block.
        ends: ids that end a row; empty to decode everything.
        observe: called with every step.
        probe: a closer observer.
    """

    canvas: Canvas
    passes: Passes
    chooser: Chooser
    block_length: int
    ends: Iterable[int] = ()
    observe: DiffusionObserver | None = None
    probe: Probe | None = None
    steps: list[DiffusionStep] = field(default_factory=list)
    finish: list[str | None] = field(init=False)
    canvases: list[list[int]] = field(init=False)
    rows: list[int] = field(init=False)
    stopped: bool = field(default=False, init=False)
    _decided: dict[int, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Begin with all rows."""
        count = len(self.canvas.ids)
        self.rows = list(range(count))
        self.finish, self.canvases = [None] * count, [[] for _ in range(count)]
        self.ends = frozenset(self.ends)
        self.chooser.logits = None if self.probe is None else []

    def run(self) -> None:
        """Fill in the canvas."""
        for number, block in enumerate(self.canvas.blocks(self.block_length)):
            self._drop_ended()
            if not self.rows or self.stopped:
                break
            self._fill(number, block)
        self._take(range(len(self.rows)))

    def results(self, ends: Iterable[int]) -> tuple[list[list[int]], list[str]]:
        """Return the new tokens of each row and why it ended. Tokens stop at the first end and before what is open."""
        ends, found, why = frozenset(ends), [], []
        for row, canvas in enumerate(self.canvases):
            decided = canvas[: self._decided.get(row, len(canvas))]
            at = next((i for i, token in enumerate(decided) if token in ends), None)
            found.append(decided if at is None else decided[: at + 1])
            why.append("eos" if at is not None else "stopped" if row in self._decided else "length")
        return found, why

    def _fill(self, number: int, block: slice) -> None:
        """Fill in one block."""
        board = self.passes.begin(self.canvas, block)
        known = HostBlock.of(self.canvas, block, self.ends)
        size = block.stop - block.start
        for step in itertools.count():
            if self.stopped or not bool(known.open.any()):
                return
            began = time.perf_counter()
            layers: list[Tensor] | None = [] if self.probe and self.probe.wants_layers else None
            if self.probe is not None:
                self._look_before(number, step)
            feed, passed = self.passes.step(step, layers)
            at = self.chooser.update(board, feed, passed, known.open)
            open = self.chooser.eligible(feed, passed, self.canvas.open[:, block])
            chosen = self.chooser.choose(board, open, step=step, size=size)
            if self.probe is not None:
                self._look_after(feed, passed, layers or [], at, chosen)
            self.passes.commit(chosen, board.tokens)
            committed = known.commit(*to_host(board, chosen))
            for row, column in known.ended():
                self.finish[self.rows[row]] = "eos"
                known.open[row] = False
                self.passes.close(row, block.start + column + 1, int(known.text[row, column]))
            record = self._record(number, step, feed, passed, committed, began)
            self.steps.append(record)
            if self.observe is not None and self.observe(record):
                self.stopped = True

    def _record(
        self, block: int, step: int, feed: Feed, passed: Passed, committed: list[Committed], began: float
    ) -> DiffusionStep:
        """Write down what a step committed; rows that have left the canvas have committed nothing."""
        spread = [Committed([], [], [])] * len(self.finish)
        for row, mine in zip(self.rows, committed, strict=True):
            spread[row] = mine
        computed = feed.ids.numel()
        layers = passed.token_layers
        return DiffusionStep(
            index=len(self.steps),
            block=block,
            step=step,
            full=feed.full,
            positions=[c.positions for c in spread],
            tokens=[c.tokens for c in spread],
            confidence=[c.confidence for c in spread],
            seconds=time.perf_counter() - began,
            computed=computed,
            token_layers=computed * self.passes.num_layers if layers is None else layers,
        )

    def _drop_ended(self) -> None:
        """Take rows that have ended off the canvas; the next forward is a full one, so no cache has to follow."""
        keep = [i for i, row in enumerate(self.rows) if self.finish[row] is None]
        if len(keep) == len(self.rows):
            return
        self._take(i for i in range(len(self.rows)) if i not in keep)
        self.rows = [self.rows[i] for i in keep]
        self.chooser.generators = [self.chooser.generators[i] for i in keep]
        if keep:
            self.canvas = self.canvas.rows(keep)

    def _take(self, which: Iterable[int]) -> None:
        """Keep the generation area of some rows of the canvas."""
        for i in which:
            open = self.canvas.open[i, self.canvas.start :].cpu()
            if bool(open.any()):  # the run was stopped
                self._decided[self.rows[i]] = int(open.int().argmax())
            self.canvases[self.rows[i]] = self.canvas.ids[i, self.canvas.start :].tolist()

    def _look_before(self, block: int, step: int) -> None:
        assert self.probe is not None
        passes = self.passes
        self.probe.before(
            Before(
                index=len(self.steps),
                block=block,
                step=step,
                full=passes.is_full(step),
                rows=tuple(self.rows),
                canvas=passes.canvas,
                columns=passes.block,
                board=passes.board,
                slots=passes.slots,
                forward=passes.forward,
            )
        )

    def _look_after(
        self, feed: Feed, passed: Passed, layers: list[Tensor], at: Tensor, chosen: Tensor
    ) -> None:
        assert self.probe is not None
        logits, self.chooser.logits = self.chooser.logits or [], []
        board = self.passes.board
        size = chosen.shape[1]
        self.probe.after(
            After(
                columns=feed.columns,
                rows=feed.rows,
                hidden=passed.hidden,
                layers=layers,
                at=(at // size, at % size),
                logits=torch.cat(logits) if logits else passed.hidden.new_zeros(0, 0),
                tokens=board.tokens.clone(),
                confidence=board.confidence.clone(),
                chosen=chosen,
                fresh=passed.fresh,
                notes=passed.notes,
            )
        )
