"""The plain way: every token from a fresh forward over its whole prefix; one row at a time, no padding, no cache."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from twinrun.models.model import Model
from twinrun.records.scores import Scores
from twinrun.runners.forward import Reader, TailMismatch, forward, reading
from twinrun.runners.runner import ModelRunner
from twinrun.runners.window import Window, causal


class Recompute(ModelRunner):
    """Recompute the whole prefix for every token.

    The reference that every faster way is held against: it has no cache to be stale, no padding to leak, no
    batch to mix, so a bug of those kinds cannot hide in it.

    Args:
        model: what `twinrun.load` returns.
        window: None for the whole prefix. With a number of tokens, what "the last `window` tokens" means follows from
            the model's positions. Learned: a fresh forward over these tokens alone, at positions 0 to `window` - 1
            ("sliding recompute"). Rotary: a forward over the whole prefix whose mask lets every query see that many
            tokens, positions counting on. Either way a text may be longer than the model's context.

    Raises:
        ConfigError: a window outside its range.
        UnsupportedModelError: a model whose positions or layers allow no window.

    Cost: `len(row) - start + 1` forwards a row, quadratic in the length; a mask of length x length booleans where the
        window needs one.

    Example:
        >>> m = load("builtin:amateur")
        >>> Recompute(m).score([5, 6, 7], start=2).positions
        tensor([1, 2])
    """

    kind = "recompute"

    def __init__(self, model: Model, window: int | None = None) -> None:
        """Choose the whole prefix, or a window of it."""
        super().__init__(model)
        self.window = None if window is None else Window.of(model, window, who="Recompute")

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
        if window is not None and window.positions.kind == "learned":
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
                features = torch.cat([self._last(read, row[:end]) for end in range(start, len(row) + 1)])
                read.check()
                routes = read.routes.of_forwards()
                return read.scores(row, start, features, time.perf_counter() - began, routes)
        except TailMismatch:
            return self._score_row(row, start, stream=False)

    def _last(self, read: Reader, prefix: list[int]) -> Tensor:
        """Features `[1, width]` of the last position. Cloned: a view would keep the whole forward's tensor alive."""
        ids, mask = self.handed(prefix)
        return read(ids, mask=mask)[0, -1:].clone()

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
        pairs = [self._runner.handed(row) for row in self._rows]
        return torch.cat([forward(model, ids, mask=mask)[:, -1] for ids, mask in pairs])

    def commit(self, tokens: list[int]) -> None:
        """Append to every row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)

    def cache_lengths(self) -> tuple[int, ...]:
        """No cache."""
        return ()
