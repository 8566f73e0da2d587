"""A reference that scores each text once a precision, so that several candidates are held against one run of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from twinrun.bench.timing import wait_for_cuda
from twinrun.numerics.precision import dtype_name
from twinrun.records.scores import Scores


class Remembered:
    """A runner for `twinrun.verify` in the place of the reference, with the scores it gave before.

    `runner` is the wrapped one; `seconds` holds the time of the newest score that was computed, by precision. Nothing
    runs when a text is remembered, so `twinrun.blame` must be asked with `runner` itself.
    """

    def __init__(self, runner: Any) -> None:
        """Wrap a runner that has `raised()`."""
        self.runner = runner
        self._scores: dict[tuple[Any, ...], Any] = {}
        self._precision = self.dtype = str(runner.dtype)
        self.name, self.model, self.model_name = runner.name, runner.model, runner.model_name
        self.seconds: dict[str, float] = {}

    def score(self, tokens: Sequence[int], start: int) -> Scores:
        """Score a text, or return the scores that it got before in this precision."""
        key = (tuple(tokens), start, self._precision)
        if key not in self._scores:
            began = time.perf_counter()
            self._scores[key] = self.runner.score(tokens, start)
            wait_for_cuda()
            self.seconds[self._precision] = time.perf_counter() - began
        found: Scores = self._scores[key]
        return found

    @contextmanager
    def raised(self) -> Iterator[torch.dtype]:
        """Run the runner one precision up inside the block."""
        with self.runner.raised() as dtype:
            self._precision = dtype_name(dtype)
            try:
                yield dtype
            finally:
                self._precision = self.dtype

    def can_raise(self) -> str | None:
        """None if `raised` will work, else the reason why not."""
        found: str | None = self.runner.can_raise()
        return found
