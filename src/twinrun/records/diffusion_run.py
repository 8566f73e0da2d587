"""The record of one masked-diffusion decode: what each forward committed, where, and how sure the model was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from twinrun.records.run import Written


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionStep:
    """One forward of the model. Outer lists run over the rows of the batch; a row that committed nothing has [].

    Attributes:
        index: number of the forward in the run, from 0.
        block: number of the block, from 0.
        step: number inside the block, from 0.
        full: whether the whole canvas was computed, else only the part that the cache renews.
        positions: absolute positions that were committed, ascending, padding not counted.
        tokens: what was committed there.
        confidence: probability of each of them when it was committed.
        seconds: time of this step.
        computed: tokens that went through the model, over all rows, padding counted.
        token_layers: tokens times layers that were computed; smaller than tokens times all layers where some skip.
    """

    index: int
    block: int
    step: int
    full: bool
    positions: list[list[int]]
    tokens: list[list[int]]
    confidence: list[list[float]]
    seconds: float
    computed: int
    token_layers: int


DiffusionObserver = Callable[[DiffusionStep], object]
"""Called after every step; a true return value stops the run (finish reason "stopped")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionRun(Written):
    """One masked-diffusion decode of a batch of prompts.

    Attributes:
        tokens: new tokens of each row, up to and including its first end-of-text token. What the model wrote behind
            that is in `canvases` only and counts nowhere.
        canvases: the whole generation area of each row. Behind the end of a row that was stopped early it holds that
            end token; in a run that `observe` stopped, undecided positions hold the mask.
        finish: "eos", "length", or "stopped" for each row.
        num_layers: decoder layers of the model.
        cache_bytes: keys and values held at the end; 0 without a cache.
    """

    canvases: list[list[int]]
    steps: list[DiffusionStep] = field(repr=False)
    num_layers: int
    cache_bytes: int = 0

    @property
    def nfe(self) -> int:
        """Forwards of the model (number of function evaluations)."""
        return len(self.steps)

    @property
    def nfe_full(self) -> int:
        """Forwards over the whole canvas."""
        return sum(step.full for step in self.steps)

    @property
    def nfe_block(self) -> int:
        """Forwards over a part of the canvas."""
        return self.nfe - self.nfe_full

    @property
    def tokens_per_forward(self) -> float:
        """New tokens over forwards; a batch counts the tokens of all its rows."""
        return self.new_tokens / self.nfe if self.nfe else 0.0

    @property
    def tokens_per_second(self) -> float:
        """New tokens over seconds."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def skip_ratio(self) -> float:
        """Tokens times layers that were skipped, over those of the forwards over a part of the canvas."""
        partial = [step for step in self.steps if not step.full]
        whole = sum(step.computed for step in partial) * self.num_layers
        return 1 - sum(step.token_layers for step in partial) / whole if whole else 0.0

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and generation area of each row."""
        return [[*p, *c] for p, c in zip(self.prompts, self.canvases, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return the record, with the numbers computed from it, as plain JSON types."""
        computed = ("nfe", "nfe_full", "nfe_block", "new_tokens", "tokens_per_forward", "tokens_per_second")
        return asdict(self) | {name: getattr(self, name) for name in (*computed, "skip_ratio")}
