"""Faults of the rows handed out: the model is right, and what is read from it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from twinrun.faults.fault import Fault, Site, always
from twinrun.faults.parts import attribute
from twinrun.numerics.blocks import LogitRows
from twinrun.records.scores import Routes, Scores
from twinrun.runners.runner import ModelRunner


def scores_off_by_one() -> Fault:
    """Each row of scores is that of the next position."""
    return Fault(
        name="scores-off-by-one",
        summary="scores are shifted by one row, so that each position is given the scores of the next",
        thread=(
            "https://github.com/AI-Hypercomputer/maxtext/issues/2103",
            "https://github.com/NVIDIA/TensorRT-LLM/pull/12662",
        ),
        kind="runner",
        where="rows of the scores",
        site=Site("scores"),
        needs=("two scored positions",),
        reason_against=always,
        plant=_shifted_scores,
    )


def padded_row_read() -> Fault:
    """Rows of a left-padded batch are read as if the padding were on the right."""
    return Fault(
        name="padded-row-read",
        summary="scores of a left-padded batch are read at the columns they would have with padding on the right",
        thread=(
            "https://github.com/huggingface/transformers/issues/35909",
            "https://github.com/huggingface/transformers/pull/46782",
        ),
        kind="runner",
        where="rows of the scores of padded rows",
        site=Site("scores"),
        needs=("padding",),
        runners=("single-pass",),
        reason_against=always,
        plant=_right_padding_read,
    )


def scores_after_sorting() -> Fault:
    """Scores are looked up by token id in rows already sorted by size."""
    return Fault(
        name="scores-after-sorting",
        summary="each row is sorted, largest first, before the scores of the tokens are looked up in it by id",
        thread=("https://github.com/abetlen/llama-cpp-python/pull/453",),
        kind="runner",
        where="columns of the scores",
        site=Site("scores"),
        reason_against=always,
        plant=_sorted_scores,
    )


def softmax_in_half() -> Fault:
    """Log-probabilities are the logarithm of a softmax rounded to float16."""
    return Fault(
        name="softmax-in-half",
        summary="scores are log(softmax(logits)) with the softmax in float16, where small probabilities are coarse "
        "and tiny ones are zero",
        thread=(
            "https://github.com/nod-ai/amd-shark-ai/pull/2062",
            "https://github.com/genlm/genlm-backend/pull/66",
        ),
        kind="runner",
        where="rows of the scores",
        site=Site("scores"),
        reason_against=always,
        plant=_half_softmax,
    )


class _Changed:
    """Rows of another source, each passed through `change`."""

    def __init__(self, inner: LogitRows, change: Callable[[Tensor], Tensor]) -> None:
        self._inner, self._change = inner, change
        self.vocab_size, self.num_rows = inner.vocab_size, inner.num_rows

    def rows(self, start: int, stop: int) -> Tensor:
        return self._change(self._inner.rows(start, stop))


class _Picked:
    """Rows of another source in another order."""

    def __init__(self, inner: LogitRows, order: Sequence[int]) -> None:
        self._inner, self._order = inner, list(order)
        self.vocab_size, self.num_rows = inner.vocab_size, len(self._order)

    def rows(self, start: int, stop: int) -> Tensor:
        return torch.cat([self._inner.rows(i, i + 1) for i in self._order[start:stop]])


@contextmanager
def _handed_out(runner: ModelRunner, change: Callable[[LogitRows], LogitRows]) -> Iterator[None]:
    """Pass the rows of every score through `change`."""
    right = runner.score_batch

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        return [replace(scores, logits=change(scores.logits)) for scores in right(rows, starts)]

    with attribute(runner, "score_batch", wrong):
        yield


def _shifted_scores(runner: ModelRunner) -> AbstractContextManager[None]:
    def shifted(logits: LogitRows) -> LogitRows:
        return _Picked(logits, [*range(1, logits.num_rows), logits.num_rows - 1])

    return _handed_out(runner, shifted)


def _sorted_scores(runner: ModelRunner) -> AbstractContextManager[None]:
    def by_size(rows: Tensor) -> Tensor:
        return rows.sort(dim=-1, descending=True).values

    return _handed_out(runner, lambda logits: _Changed(logits, by_size))


def _half_softmax(runner: ModelRunner) -> AbstractContextManager[None]:
    def coarse(rows: Tensor) -> Tensor:
        return torch.softmax(rows.half(), dim=-1).to(rows.dtype).log()

    return _handed_out(runner, lambda logits: _Changed(logits, coarse))


@contextmanager
def _right_padding_read(runner: ModelRunner) -> Iterator[None]:
    """Score every position, then take those at which the batch would be read. Columns of padding give the first."""
    right = runner.score_batch

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        width, found = max(map(len, rows)), []
        for whole, start in zip(right(rows, [1] * len(rows)), starts, strict=True):
            count, padding = len(whole.tokens) - start + 1, width - len(whole.tokens)
            order = [max(0, start - 1 + i - padding) for i in range(count)]
            routes = whole.routes and Routes(
                experts=whole.routes.experts[-count:], logits=whole.routes.logits[-count:]
            )
            logits, positions = _Picked(whole.logits, order), whole.positions[-count:]
            found.append(replace(whole, logits=logits, positions=positions, routes=routes))
        return found

    with attribute(runner, "score_batch", wrong):
        yield
