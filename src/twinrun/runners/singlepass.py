"""One forward for prompt plus continuation: under a causal mask the logits at position i-1 score token i."""

from __future__ import annotations

import time

from torch import Tensor

from twinrun.records.scores import Scores
from twinrun.runners.forward import Padded, TailMismatch, forward, reading
from twinrun.runners.runner import ModelRunner


class SinglePass(ModelRunner):
    """Score a text that is already there with one forward for all its tokens; a batch is left-padded together.

    `generate` has no text to score, so it makes the same one forward over the whole padded batch for every
    new token (no cache); use `KVCache` to generate fast.

    Source: teacher forcing with a causal mask; LightReasoner's sampling is the use that made it matter
    (arXiv:2510.07962; the proposal in the project's pull request 12).

    Args:
        model: what `twinrun.load` returns.
        logits: rows that `score` keeps, and the precision of their softmax; None is all, streamed in float32.

    Cost: one forward; logits are streamed, so memory is that of the hidden states.

    Example:
        >>> m = load("builtin:amateur")
        >>> SinglePass(m).score([5, 6, 7], start=2).positions
        tensor([1, 2])
    """

    kind = "single-pass"

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        try:
            return self._score_once(rows, starts, stream=True)
        except TailMismatch:
            return self._score_once(rows, starts, stream=False)

    def _score_once(self, rows: list[list[int]], starts: list[int], *, stream: bool) -> list[Scores]:
        began = time.perf_counter()
        batch = Padded.of(rows, self.model.pad_id, self.model.device)
        counts = [self.logits.rows(len(row) - start + 1) for row, start in zip(rows, starts, strict=True)]
        with reading(self.model, stream=stream, keep=max(counts), watch_head=True) as read:
            features = read(batch.ids, mask=batch.mask, positions=batch.position_ids)
            seconds = (time.perf_counter() - began) / len(rows)
            scores = []
            for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
                routes = read.routes.of_row(i, len(row), count)
                first = len(row) + 1 - count
                scores.append(read.scores(row, first, features[i, -count:], seconds, routes))
            return scores

    def start(self, rows: list[list[int]], new_tokens: int) -> SinglePassDecoding:
        """Begin a free run."""
        return SinglePassDecoding(self, rows)


class SinglePassDecoding:
    """A free run of a batch with one padded forward a step and no cache."""

    def __init__(self, runner: SinglePass, rows: list[list[int]]) -> None:
        self._model = runner.model
        self._rows = [list(row) for row in rows]

    def logits(self) -> Tensor:
        """One forward over all rows."""
        batch = Padded.of(self._rows, self._model.pad_id, self._model.device)
        return forward(self._model, batch.ids, mask=batch.mask, positions=batch.position_ids)[:, -1]

    def commit(self, tokens: list[int]) -> None:
        """Append to every row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)

    def cache_lengths(self) -> tuple[int, ...]:
        """No cache."""
        return ()
