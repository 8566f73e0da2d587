"""One thing to be answered: token ids that are read first, ids that follow, and what an answer is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Score = Callable[[str], dict[str, float]]
"""Returns what an answer's text is worth, 0 to 1: "score" is the task's own metric, "exact" where there is such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """An item of a task at a length, asked in one of the two modes.

    Attributes:
        task: its name.
        length: what was asked for, in tokens.
        mode: "end" or "unseen".
        index: which of the task's items.
        prompt: ids that are handed over together; this is what a pruning runner prunes.
        then: ids that follow into the cache before anything is generated: the question, where the prompt is without.
        max_new_tokens: of the answer.
        ends: ids that end an answer besides the model's own.
        least: tokens an answer has at least.
        right: ids of a right answer, for selectors that are shown it (the oracle).
        score: what an answer is worth.
    """

    task: str
    length: int
    mode: str
    index: int
    prompt: tuple[int, ...] = field(repr=False)
    then: tuple[int, ...] = field(default=(), repr=False)
    max_new_tokens: int
    ends: frozenset[int] = frozenset()
    least: int = 0
    right: tuple[int, ...] = field(default=(), repr=False)
    score: Score = field(repr=False)

    @property
    def key(self) -> str:
        """Name of the item, the same in every run of the same request."""
        return f"{self.task}/{self.length}/{self.mode}/{self.index}"
