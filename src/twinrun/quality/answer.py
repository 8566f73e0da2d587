"""Answers of a runner to a batch of items: the prompts in one forward, then the questions, then what it writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from twinrun.errors import ConfigError
from twinrun.quality.item import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a runner wrote for one item.

    `cache_lengths` are those after the prefill, a number a layer, empty without a cache. A pruning runner tells those
    of every row; of others padding is counted in a batch of unequal rows.
    """

    ids: tuple[int, ...]
    cache_lengths: tuple[int, ...]
    seconds: float
    """Of the batch, by its rows."""


@dataclass(slots=True)
class _Row:
    """One item under way: ids of the question that must still be fed, then ids that the model chose."""

    item: Item
    eos: frozenset[int]
    fed: int = 0
    new: list[int] = field(default_factory=list)
    done: bool = False

    def banned(self) -> list[int]:
        """Ids that may not come next: those that end an answer which has too few tokens."""
        is_writing = self.fed == len(self.item.then) and not self.done
        return sorted(self.eos) if is_writing and len(self.new) < self.item.least else []

    def take(self, chosen: int) -> int:
        """Return the id that is fed next, which is the model's choice once the question is through."""
        if self.fed < len(self.item.then):
            self.fed += 1
            return self.item.then[self.fed - 1]
        if not self.done:
            self.new.append(chosen)
            self.done = chosen in self.eos or len(self.new) >= self.item.max_new_tokens
        return chosen


def answer(runner: Any, items: Sequence[Item]) -> list[Answer]:
    """Let a runner answer items together, greedily.

    The prompts run first, in one forward where the runner works that way; a pruning runner prunes them, and only them.
    The question of an item that has one behind its prompt is fed token by token, at its own positions, into the same
    cache.

    Args:
        runner: a causal runner of twinrun (`start` gives its free run).
        items: one or more; rows of unequal length are padded on the left.

    Raises:
        ConfigError: a runner without `start`, or an item that is too long for it.

    Cost: one prefill, and a forward of one token a row for the longest question and answer together.
    """
    if not callable(getattr(runner, "start", None)):
        raise ConfigError(
            f"{type(runner).__name__} has no start(); a runner that is evaluated feeds a question into its own cache, "
            "as twinrun's causal runners do"
        )
    steps = max(len(item.then) + item.max_new_tokens for item in items)
    prompts = [runner.encode(item.prompt, new_tokens=len(item.then) + item.max_new_tokens) for item in items]
    prepare = getattr(getattr(runner, "selector", None), "prepare", None)
    if callable(prepare):  # the oracle, which is shown the right answers
        prepare(items)
    eos = runner.model.eos_ids
    rows = [_Row(item, eos | item.ends) for item in items]
    lengths: list[tuple[int, ...]] = []
    began = time.perf_counter()
    with torch.inference_mode():
        run = runner.start(prompts, steps)
        for _ in range(steps):
            logits = run.logits()
            lengths = lengths or [_held(runner, run, i) for i in range(len(rows))]
            fed = [row.take(int(chosen)) for row, chosen in zip(rows, _choose(logits, rows), strict=True)]
            if all(row.done for row in rows):
                break
            run.commit(fed)
    seconds = (time.perf_counter() - began) / len(rows)
    return [
        Answer(ids=tuple(row.new), cache_lengths=held, seconds=seconds)
        for row, held in zip(rows, lengths, strict=True)
    ]


def _held(runner: Any, run: Any, row: int) -> tuple[int, ...]:
    """Tokens of a row that each layer's cache holds."""
    of_row = getattr(getattr(runner, "last", None), "layer_lengths", None)
    return tuple(of_row(row)) if callable(of_row) else tuple(run.cache_lengths())


def _choose(logits: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
    """Likeliest id of each row; `logits` may be the model's own, so they are not written to."""
    logits = logits.reshape(len(rows), -1)
    for i, row in enumerate(rows):
        banned = row.banned()
        if banned:
            logits = logits.clone()
            logits[i, banned] = -torch.inf
    return [int(i) for i in logits.argmax(-1).tolist()]
