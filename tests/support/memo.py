"""A reference that remembers what it has scored: many candidates are held against one reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import twinrun as tr


class Remembered:
    """Wraps a runner; asked again for the same rows in the same precision, it answers from memory."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._seen: dict[Any, list[tr.Scores]] = {}
        self._is_raised = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def raised(self) -> Iterator[torch.dtype]:
        with self._inner.raised() as dtype:
            self._is_raised = True
            try:
                yield dtype
            finally:
                self._is_raised = False

    def score_batch(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[tr.Scores]:
        key = (self._is_raised, tuple(map(tuple, rows)), tuple(starts))
        if key not in self._seen:
            self._seen[key] = self._inner.score_batch(rows, starts)
        return self._seen[key]
