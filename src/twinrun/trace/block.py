"""Steps that wait for their numbers: many steps at once cost little more than one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinrun.numerics.blocks import block_bounds
from twinrun.numerics.fingerprint import fingerprints
from twinrun.trace.step import Scored, TracedStep

BLOCK_STEPS = 16
"""Steps whose numbers are worked out together. Of a step of 1.9 ms (small model, one token, two cores) single steps
took 0.1 ms more."""
BLOCK_SECONDS = 0.25
"""Longest that a step waits: slow models have every step on disk before the next."""
Sink = Callable[[Sequence[TracedStep]], object]


@dataclass(slots=True)
class Waiting:
    """One step, and what its numbers are made of: copies, because a runner may reuse its memory."""

    step: TracedStep
    position: int
    token: int | None = None
    logprob: float | None = None
    logits: Tensor | None = None
    """`[vocab]` of the one position that is scored; None where the scores are in the step already."""
    hidden: Tensor | None = None
    """`[rows, layers + 1, width]`."""


class Block:
    """Whole steps without their numbers. `sink` gets them, whole, a block at a time."""

    def __init__(self, sink: Sink, *, keeps_states: bool) -> None:
        """Nothing waits yet; `keeps_states` leaves the hidden states themselves in the steps."""
        self.sink, self.keeps_states = sink, keeps_states
        self.waiting: list[Waiting] = []
        self._since = time.perf_counter()

    def add(self, one: Waiting, now: float) -> bool:
        """Take a whole step at the time `now`; say whether the block went to the sink."""
        self.waiting.append(one)
        if len(self.waiting) < BLOCK_STEPS and now - self._since < BLOCK_SECONDS:
            return False
        self.settle()
        return True

    def settle(self) -> None:
        """Work out what is missing, and hand the steps over."""
        found, self.waiting = self.waiting, []
        if found:
            with torch.inference_mode():
                _score([one for one in found if one.logits is not None])
                _print([one for one in found if one.hidden is not None], keeps_states=self.keeps_states)
            self.sink([one.step for one in found])
        self._since = time.perf_counter()


def _score(found: list[Waiting]) -> None:
    logits = [one.logits for one in found if one.logits is not None]
    for start, stop in block_bounds(len(found), len(logits[0]) if logits else 1):
        part = found[start:stop]
        positions, tokens = [one.position for one in part], [one.token for one in part]
        rows = Scored.of(torch.stack(logits[start:stop]), positions, tokens)
        for one, row in zip(part, rows, strict=True):
            row.logprob = row.logprob if one.logprob is None else one.logprob
            one.step.rows.append(row)


def _print(found: list[Waiting], *, keeps_states: bool) -> None:
    hidden = [one.hidden for one in found if one.hidden is not None]
    if not hidden:
        return
    prints = torch.split(fingerprints(torch.cat(hidden)).cpu(), [len(rows) for rows in hidden])
    for one, rows, own in zip(found, hidden, prints, strict=True):
        one.step.hidden = own
        one.step.states = rows.cpu() if keeps_states else None
