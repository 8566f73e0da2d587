"""Faults of the ids that are fed: not those of the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from twinrun.faults.fault import Fault, Site, always
from twinrun.faults.parts import attribute
from twinrun.records.scores import Routes, Scores
from twinrun.runners.runner import ModelRunner


def double_bos() -> Fault:
    """The first token is fed twice."""
    return Fault(
        name="double-bos",
        summary="the first token (BOS in a chat template that already has one) is fed twice; scores are handed out "
        "for the text as it was given",
        thread=(
            "https://github.com/sgl-project/sglang/pull/888",
            "https://github.com/vllm-project/vllm/pull/16976",
        ),
        kind="runner",
        where="input ids of the first forward",
        site=Site("input ids"),
        needs=("two tokens",),
        reason_against=always,
        plant=_first_token_twice,
    )


def _without_first(scores: Scores) -> Scores:
    """Forget the first token of a row in its record."""
    routes = scores.routes and Routes(
        experts=[part[:, 1:] for part in scores.routes.experts],
        logits=[part[:, 1:] for part in scores.routes.logits],
    )
    return replace(scores, tokens=scores.tokens[1:], positions=scores.positions - 1, routes=routes)


@contextmanager
def _first_token_twice(runner: ModelRunner) -> Iterator[None]:
    right, limit = runner.score_batch, runner.model.max_context

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        extra = [int(limit is None or len(row) < limit) for row in rows]  # a full context has no room for it
        fed = [[*list(row)[:n], *row] for row, n in zip(rows, extra, strict=True)]
        found = right(fed, [start + n for start, n in zip(starts, extra, strict=True)])
        return [_without_first(scores) if n else scores for scores, n in zip(found, extra, strict=True)]

    with attribute(runner, "score_batch", wrong):
        yield
