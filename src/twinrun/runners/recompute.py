"""The plain way: every token from a fresh forward over its whole prefix; one row at a time, no padding, no cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from twinrun.models.model import Model
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.records.scores import Scores
from twinrun.runners.forward import Reader, TailMismatch, forward, reading
from twinrun.runners.runner import ModelRunner
from twinrun.runners.window import Window, causal

SAME_EPS = 64
"""A row of two forwards of unequal length is the same row if it differs by at most so many roundoffs of its norm.
Over 70 tokens: at most 5.5 in 28 families, 6.4 in the trained expert; 3e6 and more where LongRoPE switches."""


class Recompute(ModelRunner):
    """Recompute the whole prefix for every token.

    The reference that every faster way is held against: it has no cache to be stale, no padding to leak, no
    batch to mix, so a bug of those kinds cannot hide in it.

    One precision up, where it serves as the oracle, every second forward is left out if that can be proved
    harmless: see `_every_second`.

    Args:
        model: what `twinrun.load` returns.
        window: None for the whole prefix. With a number of tokens, what "the last `window` tokens" means follows from
            the model's positions. Learned: a fresh forward over these tokens alone, at positions 0 to `window` - 1
            ("sliding recompute"). Rotary: a forward over the whole prefix whose mask lets every query see that many
            tokens, positions counting on. Either way a text may be longer than the model's context.
        logits: rows that `score` keeps, and the precision of their softmax; None is all, streamed in float32.

    Raises:
        ConfigError: a window outside its range.
        UnsupportedModelError: a model whose positions or layers allow no window.

    Cost: `len(row) - start + 1` forwards a row, quadratic in the length; about half of them one precision up;
        a mask of length x length booleans where the window needs one.

    Example:
        >>> m = load("builtin:amateur")
        >>> Recompute(m).score([5, 6, 7], start=2).positions
        tensor([1, 2])
    """

    kind = "recompute"
    _may_leave_out = False

    def __init__(
        self, model: Model, window: int | None = None, *, logits: LogitsPolicy | None = None
    ) -> None:
        """Choose the whole prefix, or a window of it, and which scores are kept."""
        super().__init__(model, logits)
        self.window = None if window is None else Window.of(model, window, who="Recompute")

    @contextmanager
    def raised(self) -> Iterator[torch.dtype]:
        """Inside the block this runner runs its model one precision up, with half of the forwards."""
        with super().raised() as dtype:
            before, self._may_leave_out = self._may_leave_out, not self.slides
            try:
                yield dtype
            finally:
                self._may_leave_out = before

    @property
    def name(self) -> str:
        """How records call this runner."""
        return self.kind if self.window is None else f"{self.kind}(window={self.window.tokens})"

    @property
    def max_context(self) -> int | None:
        """Longest text; with a window there may be no limit."""
        return self.model.max_context if self.window is None else self.window.max_context

    @property
    def slides(self) -> bool:
        """Whether forwards are fed the end of a text alone; `blame` then finds where they stand."""
        return self.window is not None and self.window.positions.kind == "learned"

    def handed(self, prefix: list[int]) -> tuple[Tensor, Any]:
        """Return the ids `[1, tokens]` of one forward for the end of `prefix`, and its mask (None: the model's own)."""
        window, mask = self.window, None
        if window is not None and self.slides:
            prefix = prefix[-(window.tokens or 0) :]
        elif window is not None and len(prefix) > window.smallest:
            mask = causal(len(prefix), window)
        return torch.tensor([prefix], device=self.model.device), mask

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        return [self._score_row(row, start, stream=True) for row, start in zip(rows, starts, strict=True)]

    def _score_row(self, row: list[int], start: int, *, stream: bool) -> Scores:
        began = time.perf_counter()
        try:
            with reading(self.model, stream=stream) as read:
                features = self._every_second(read, row, start) if self._may_leave_out else None
                if features is None:
                    features = torch.cat(
                        [self._rows(read, row[:end], 1) for end in range(start, len(row) + 1)]
                    )
                read.check()
                routes = None if self.slides else read.routes.of_prefixes(range(start, len(row) + 1))
                return read.scores(row, start, features, time.perf_counter() - began, routes)
        except TailMismatch:
            return self._score_row(row, start, stream=False)

    def _every_second(self, read: Reader, row: list[int], start: int) -> Tensor | None:
        """Features of all scored positions from every second prefix, or None if a row depends on what follows it.

        A forward over n tokens has a row for the prefix of n - 1 tokens too, which is that prefix's own if no later
        token reaches it. That is proved, not believed: the row one further up must be the last row of the forward
        over n - 2 tokens. Lost causality, tables that switch with the length and router ties part there, and then
        nothing is left out.
        """
        ends = sorted({start, *range(len(row), start, -2)})
        found: list[Tensor] = []
        for before, end in zip([None, *ends], ends, strict=False):
            rows = self._rows(read, row[:end], 1 if before is None else end - before + 1)
            if found and not _is_same(found[-1][0], rows[0]):
                read.routes.forwards.clear()
                return None
            found += torch.split(rows[0 if before is None else 1 :], 1)
        return torch.cat(found)

    def _rows(self, read: Reader, prefix: list[int], count: int) -> Tensor:
        """Features `[count, width]` of the last positions. Cloned: a view would keep the whole forward alive."""
        ids, mask = self.handed(prefix)
        return read(ids, mask=mask)[0, -count:].clone()

    def start(self, rows: list[list[int]], new_tokens: int) -> RecomputeDecoding:
        """Begin a free run."""
        return RecomputeDecoding(self, rows)


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two rows differ by rounding alone."""
    bound = SAME_EPS * torch.finfo(a.dtype).eps * torch.linalg.vector_norm(a)
    return bool(torch.linalg.vector_norm(a - b) <= bound)


class RecomputeDecoding:
    """A free run without a cache: each row's whole text, again, for every token."""

    def __init__(self, runner: Recompute, rows: list[list[int]]) -> None:
        self._runner = runner
        self._rows = [list(row) for row in rows]

    def logits(self) -> Tensor:
        """One forward a row."""
        model = self._runner.model
        pairs = [self._runner.handed(row) for row in self._rows]
        return torch.cat([forward(model, ids, mask=mask)[:, -1] for ids, mask in pairs])

    def commit(self, tokens: list[int]) -> None:
        """Append to every row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)

    def cache_lengths(self) -> tuple[int, ...]:
        """No cache."""
        return ()
