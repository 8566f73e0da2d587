"""The record of one free-running execution: what was committed at each step, where, and how long it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from twinrun.records.env import environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward of the model. Lists run over the rows of the batch; a finished row commits `None`."""

    index: int
    tokens: list[int | None]
    positions: list[int | None]
    logprobs: list[float | None]
    seconds: float
    cache_lengths: tuple[int, ...] = ()


Observer = Callable[[Step], object]
"""Called after every step; a true return value stops the run (finish reason "stopped")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a free-running execution wrote, whatever its steps are."""

    runner: str
    model: str
    dtype: str
    prompts: list[list[int]]
    tokens: list[list[int]]
    texts: list[str] | None
    finish: list[str]
    settings: dict[str, Any]
    seconds: float
    env: dict[str, Any] = field(default_factory=environment, repr=False)

    @property
    def new_tokens(self) -> int:
        """Tokens of all rows up to and including their end; what lies behind an end is not counted."""
        return sum(map(len, self.tokens))

    @property
    def text(self) -> str:
        """Text of the only row.

        Raises:
            ValueError: the run has several rows, or its model has no tokenizer.
        """
        if self.texts is None or len(self.texts) != 1:
            raise ValueError(
                "`text` is for runs of one prompt on a model with a tokenizer; use `texts` or `tokens`"
            )
        return self.texts[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Written):
    """One execution of one runner on a batch of prompts.

    `tokens[i]` are the new tokens of row i (EOS included when it was produced); `finish[i]` is "eos",
    "length" or "stopped".
    """

    steps: list[Step] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)
