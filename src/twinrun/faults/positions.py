"""Faults of position: a token at another place than its own, a score at another place than its token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults.fault import Fault, Site, always
from twinrun.faults.parts import attribute, calls
from twinrun.models.model import Model
from twinrun.numerics.blocks import LogitRows
from twinrun.records.scores import Scores
from twinrun.runners.runner import ModelRunner


def position_off_by_one() -> Fault:
    """Every token decoded from the cache stands one position late."""
    return Fault(
        name="position-off-by-one",
        summary="tokens decoded from the cache stand at their position plus one; those of the prompt are not",
        thread=(
            "https://github.com/huggingface/transformers/issues/35350",
            "https://github.com/rajveer43/VeloxQuant-MLX/issues/389",
        ),
        kind="runner",
        where="position ids of the first decoding step",
        site=Site("positions"),
        needs=("cache", "steps after the prompt"),
        runners=("kv-cache:dynamic", "kv-cache:static"),
        reason_against=_no_position_ids,
        plant=_late_positions,
    )


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


def _no_position_ids(model: Model) -> str | None:
    return None if "position_ids" in model.accepts else "its forward takes no position_ids"


@contextmanager
def _late_positions(runner: ModelRunner) -> Iterator[None]:
    def change(_module: nn.Module, by_name: dict[str, Any]) -> None:
        ids, cache = by_name["input_ids"], by_name.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if past == 0:
            return
        here = by_name.get("position_ids")
        if here is None:
            here = torch.arange(past, past + ids.shape[1], device=ids.device)[None].expand(ids.shape)
        by_name["position_ids"] = here + 1

    with calls([runner.model.core], change):
        yield


class _Shifted:
    """Rows of another source, each one later; the last stays."""

    def __init__(self, inner: LogitRows) -> None:
        self._inner = inner
        self.vocab_size, self.num_rows = inner.vocab_size, inner.num_rows

    def rows(self, start: int, stop: int) -> Tensor:
        last = self.num_rows - 1
        picked = [min(i + 1, last) for i in range(start, stop)]
        return torch.cat([self._inner.rows(i, i + 1) for i in picked])


@contextmanager
def _shifted_scores(runner: ModelRunner) -> Iterator[None]:
    right = runner.score_batch

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        return [replace(scores, logits=_Shifted(scores.logits)) for scores in right(rows, starts)]

    with attribute(runner, "score_batch", wrong):
        yield
