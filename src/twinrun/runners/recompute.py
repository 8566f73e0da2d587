"""The plain way: every token from a fresh forward over its whole prefix; one row at a time, no padding, no cache."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from twinrun.records.scores import Scores
from twinrun.runners.forward import Reader, TailMismatch, forward, reading
from twinrun.runners.runner import ModelRunner


class Recompute(ModelRunner):
    """Recompute the whole prefix for every token.

    The reference that every faster way is held against: it has no cache to be stale, no padding to leak, no
    batch to mix, so a bug of those kinds cannot hide in it.

    Cost: `len(row) - start + 1` forwards a row, quadratic in the length.

    Example:
        >>> m = load("builtin:amateur")
        >>> Recompute(m).score([5, 6, 7], start=2).positions
        tensor([1, 2])
    """

    kind = "recompute"

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        return [self._score_row(row, start, stream=True) for row, start in zip(rows, starts, strict=True)]

    def _score_row(self, row: list[int], start: int, *, stream: bool) -> Scores:
        began = time.perf_counter()
        try:
            with reading(self.model, stream=stream) as read:
                features = torch.cat([self._last(read, row[:end]) for end in range(start, len(row) + 1)])
                read.check()
                routes = read.routes.of_forwards()
                return read.scores(row, start, features, time.perf_counter() - began, routes)
        except TailMismatch:
            return self._score_row(row, start, stream=False)

    def _last(self, read: Reader, prefix: list[int]) -> Tensor:
        """Features `[1, width]` of the last position. Cloned: a view would keep the whole forward's tensor alive."""
        return read(torch.tensor([prefix], device=self.model.device))[0, -1:].clone()

    def start(self, rows: list[list[int]], new_tokens: int) -> RecomputeDecoding:
        """Begin a free run."""
        return RecomputeDecoding(self, rows)


class RecomputeDecoding:
    """A free run without a cache: each row's whole text, again, for every token."""

    def __init__(self, runner: Recompute, rows: list[list[int]]) -> None:
        self._runner = runner
        self._rows = [list(row) for row in rows]

    def logits(self) -> Tensor:
        """One forward a row."""
        model = self._runner.model
        return torch.cat(
            [forward(model, torch.tensor([row], device=model.device))[:, -1] for row in self._rows]
        )

    def commit(self, tokens: list[int]) -> None:
        """Append to every row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)

    def cache_lengths(self) -> tuple[int, ...]:
        """No cache."""
        return ()
