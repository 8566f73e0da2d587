"""Faults of LightReasoner's sampling (casebook 4), planted in a sampler or a store, and the judge that must see them.

The judge samples the same problems twice, whole and stopped in the middle and continued, and holds what came out
against each other: which problems are there, how often, and the KL of every answer token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from twinrun.contrast.plan import Plan
from twinrun.contrast.problems import Questions
from twinrun.contrast.sampler import Sampler
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.errors import ConfigError, near_names
from twinrun.faults.parts import attribute
from twinrun.models.model import Model
from twinrun.numerics.blocks import StoredLogits
from twinrun.records.scores import Scores

SOURCE = "https://github.com/HKUDS/LightReasoner"
ROUNDING = 1e-3
"""Nats, and relative: two forwards of one text in float32 differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingFault:
    """One defect of sampling: where it sits, and how to break a sampler or a store the same way, inside a block."""

    name: str
    summary: str
    where: str
    thread: tuple[str, ...] = (SOURCE,)
    in_sampler: Callable[[Sampler], AbstractContextManager[None]] = lambda _sampler: nullcontext()
    in_store: Callable[[SampleStore], AbstractContextManager[None]] = lambda _store: nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingJudged:
    """Whether a fault was seen, and the first thing that was wrong."""

    fault: str
    caught: bool
    finding: str | None


@contextmanager
def _prefix_tokenised_again(sampler: Sampler) -> Iterator[None]:
    amateur = sampler._sides[1]
    right = amateur.score_batch

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        return [
            _with_rows(
                scores, [_read_again(sampler.amateur, row[:n], right) for n in range(start + 1, len(row) + 1)]
            )
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
def _processed_scores(sampler: Sampler) -> Iterator[None]:
    """The expert's distributions as generation made them: temperature 0.7, the likeliest 80 % of the mass."""
    expert = sampler._sides[0]
    right = expert.score_batch

    def wrong(rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        return [replace(s, logits=StoredLogits(_top_p(s))) for s in right(rows, starts)]

    with attribute(expert, "score_batch", wrong):
        yield


def _top_p(scores: Scores) -> Tensor:
    logits = scores.logits.rows(0, scores.logits.num_rows).float() / 0.7
    p, ids = torch.softmax(logits, -1).sort(descending=True)
    return logits.scatter(1, ids, logits.gather(1, ids).masked_fill(p.cumsum(-1) - p > 0.8, -torch.inf))


@contextmanager
def _samples_at_the_end(store: SampleStore) -> Iterator[None]:
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


SAMPLING_FAULTS: dict[str, SamplingFault] = {
    fault.name: fault
    for fault in (
        SamplingFault(
            name="prefix-tokenised-again",
            summary="every prefix is decoded and tokenised again, so that the amateur is given other ids than were "
            "written",
            where="input ids of the amateur",
            in_sampler=_prefix_tokenised_again,
        ),
        SamplingFault(
            name="samples-lost-on-resume",
            summary="problems are marked as done while samples wait in memory for the end of the run",
            where="the commit of a batch",
            in_store=_samples_at_the_end,
        ),
        SamplingFault(
            name="processed-scores",
            summary="the expert's distributions are the scores that generation processed, not the model's own",
            where="logits of the expert",
            in_sampler=_processed_scores,
        ),
    )
}
"""By name, in the order of the casebook."""


def judge_sampling(
    name: str | None,
    expert: Model,
    amateur: Model,
    questions: Questions,
    *,
    settings: SampleSettings | None = None,
) -> SamplingJudged:
    """Plant a fault in a run that is stopped behind its first batch and continued; hold it against a clean whole run.

    Args:
        name: a key of `SAMPLING_FAULTS`; None plants nothing, and must not be caught.
        expert: generates.
        amateur: of the same tokenizer.
        questions: at least two batches of them.
        settings: of both runs.

    Raises:
        ConfigError: an unknown name.

    Cost: the sampling twice; what is tokenised again needs a forward each.
    """
    if name is not None and name not in SAMPLING_FAULTS:
        raise ConfigError(f"no fault of sampling called {name!r}.{near_names(name, SAMPLING_FAULTS)}")
    fault = SamplingFault(name="none", summary="", where="") if name is None else SAMPLING_FAULTS[name]
    clean = SamplingFault(name="clean", summary="", where="")
    plan = Plan.of(Sampler(expert, amateur, settings or SampleSettings(batch_size=2)), questions)
    with TemporaryDirectory() as folder:
        right = _run(plan, clean, Path(folder) / "clean", stop_after=None)
        wrong = _run(plan, fault, Path(folder) / "fault", stop_after=1)
    finding = first_difference(right, wrong)
    return SamplingJudged(fault=fault.name, caught=finding is not None, finding=finding)


class _Stopped(Exception):
    """The run ends here, as if killed."""


def _run(plan: Plan, fault: SamplingFault, folder: Path, stop_after: int | None) -> list[Sampled]:
    """Sample all batches, stopped once behind some of them and continued."""
    for limit in (stop_after, None) if stop_after is not None else (None,):
        store = SampleStore.create(folder, plan.identity, parts=plan.num_batches)
        try:
            with ExitStack() as stack:
                stack.enter_context(fault.in_sampler(plan.sampler))
                stack.enter_context(fault.in_store(store))
                todo = [n for n in range(plan.num_batches) if n not in store.done()]
                for count, number in enumerate(todo):
                    if count == limit:
                        raise _Stopped
                    store.append(number, plan.sampler.sample(plan.batch(number)))
        except _Stopped:
            continue
    return list(store.sampled())


def first_difference(right: Sequence[Sampled], wrong: Sequence[Sampled]) -> str | None:
    """Say what is wrong with a sampling beside the right one, or None: problems missing or twice, another KL."""
    names = [s.trajectory.prompt_id for s in wrong]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        return f"problem {twice!r} is there twice"
    found = {s.trajectory.prompt_id: s for s in wrong}
    for ours in right:
        row = ours.trajectory
        theirs = found.get(row.prompt_id)
        if theirs is None:
            return f"problem {row.prompt_id!r} was marked as done, and its samples are not there"
        if theirs.refused != ours.refused or theirs.trajectory.answer_ids != row.answer_ids:
            return f"problem {row.prompt_id!r} has another answer, or was refused: {theirs.refused}"
        for step, (a, b) in enumerate(zip(row.kl, theirs.trajectory.kl, strict=True)):
            if abs(a - b) > ROUNDING * (1 + abs(a)):
                return f"problem {row.prompt_id!r}: KL at answer token {step} is {b:.4g} nats, it should be {a:.4g}"
    return None
