"""Faults of LightReasoner's sampling, as its public code has them (casebook, case 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from twinrun.contrast.store import SampleStore
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute
from twinrun.faults.sampled import SAMPLED, SampledRun
from twinrun.models.byte_tokenizer import SIZE
from twinrun.models.model import Model
from twinrun.numerics.blocks import StoredLogits
from twinrun.records.scores import Scores

SOURCE = "https://github.com/HKUDS/LightReasoner"


def can_sample(model: Model) -> str | None:
    """None for a model that can answer in text, or in bytes; else the reason why not."""
    if model.tokenizer is not None or model.vocab_size >= SIZE:
        return None
    return f"it has no tokenizer, and {model.vocab_size} ids are too few for the 256 bytes"


sampling_fault = partial(
    Fault, kind="runner", way="sampling", runners=(SAMPLED,), thread=(SOURCE,), reason_against=can_sample
)


def prefix_tokenised_again() -> Fault:
    """Text between the two models instead of ids."""
    return sampling_fault(
        name="prefix-tokenised-again",
        summary="every prefix is decoded and tokenised again, so that the amateur is given other ids than were "
        "written",
        where="input ids of the amateur",
        site=Site("input ids"),
        needs=("answers whose ids no tokenizer would choose",),
        plant=_read_as_text,
    )


def samples_lost_on_resume() -> Fault:
    """Done is said first, samples are written last."""
    return sampling_fault(
        name="samples-lost-on-resume",
        summary="problems are marked as done while samples wait in memory for the end of the run",
        where="the commit of a batch",
        site=Site("samples"),
        needs=("a run that is stopped and continued",),
        plant=_samples_at_the_end,
    )


def processed_scores() -> Fault:
    """What generation made of the expert's logits, against raw ones of the amateur."""
    return sampling_fault(
        name="processed-scores",
        summary="the expert's distributions are the scores that generation processed, not the model's own",
        where="logits of the expert",
        site=Site("scores"),
        plant=_processed,
    )


@contextmanager
def _read_as_text(run: SampledRun) -> Iterator[None]:
    amateur, model = run.sampler._sides[1], run.sampler.amateur
    right = amateur.score_batch

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        return [
            _with_rows(scores, [_read_again(model, row[:n], right) for n in range(start + 1, len(row) + 1)])
            for scores, row, start in zip(right(rows, starts), rows, starts, strict=True)
        ]

    with attribute(amateur, "score_batch", wrong):
        yield


def _with_rows(scores: Scores, others: Sequence[Tensor | None]) -> Scores:
    """Replace the logits of each row but the first, behind the prompt itself, for which there are others."""
    table = scores.logits.rows(0, scores.logits.num_rows).clone()
    for step, row in enumerate(others, 1):
        if row is not None:
            table[step] = row
    return replace(scores, logits=StoredLogits(table))


def _read_again(model: Model, ids: Sequence[int], score: Callable[..., list[Scores]]) -> Tensor | None:
    """What the model says behind the text of `ids`, tokenised again; None where that gives the same ids."""
    again = list(model.tokenizer(model.tokenizer.decode(list(ids)))["input_ids"])
    return None if again == list(ids) else score([again], [len(again)])[0].logits.rows(0, 1)[0]


@contextmanager
def _samples_at_the_end(run: SampledRun) -> Iterator[None]:
    with attribute(run, "around_store", _late):
        yield


@contextmanager
def _late(store: SampleStore) -> Iterator[None]:
    """Mark a batch as done when it is, and keep its samples in memory until the run ends."""
    right, held = store.append, {}

    def wrong(number: int, batch: Any) -> None:
        held[number] = list(batch)
        right(number, [])

    with attribute(store, "append", wrong):
        yield
    for number, batch in held.items():  # reached only by a run that was not stopped
        store._path(number).unlink()
        right(number, batch)


@contextmanager
def _processed(run: SampledRun) -> Iterator[None]:
    """The expert's distributions as generation made them: temperature 0.7, the likeliest 80 % of the mass."""
    expert = run.sampler._sides[0]
    right = expert.score_batch

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        return [replace(s, logits=StoredLogits(_top_p(s))) for s in right(rows, starts)]

    with attribute(expert, "score_batch", wrong):
        yield


def _top_p(scores: Scores) -> Tensor:
    logits = scores.logits.rows(0, scores.logits.num_rows).float() / 0.7
    p, ids = torch.softmax(logits, -1).sort(descending=True)
    return logits.scatter(1, ids, logits.gather(1, ids).masked_fill(p.cumsum(-1) - p > 0.8, -torch.inf))
