"""A small run of LightReasoner's sampling to plant a fault in: sampled whole, and stopped and continued."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from twinrun.contrast.plan import Plan
from twinrun.contrast.problems import Question, Questions
from twinrun.contrast.sampler import Sampler
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.faults.fault import broken_copy
from twinrun.models.byte_tokenizer import byte_tokenizer
from twinrun.models.model import Model

SAMPLED = "contrast:sample"
ROUNDING = 1e-3
"""Nats, and relative: two forwards of one text in float32 differ by less."""
SMALL = SampleSettings(batch_size=2, max_new_tokens=8, temperature=1.5, seed=4)
"""Drawn answers hold ids that no tokenizer would choose for their text."""
PROBLEMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The first thing that is wrong with a sampling: its kind, as sites of faults are called, and a sentence."""

    kind: str
    sentence: str


class SampledRun:
    """Problems to be sampled by a pair of models, and what of it was seen.

    Attributes:
        model: the expert.
        sampler: what faults of the models' sides are planted in.
        around_store: opened around every use of the folder; faults of its commits are planted here.
        fed: rows that the amateur was given in the newest run.
    """

    name = SAMPLED

    def __init__(self, expert: Model, amateur: Model, questions: Questions, settings: SampleSettings) -> None:
        """At least two batches of questions; nothing is sampled yet."""
        self.model = expert
        self.sampler = Sampler(expert, amateur, settings)
        self.plan = Plan.of(self.sampler, questions)
        self.around_store: Callable[[SampleStore], AbstractContextManager[None]] = lambda _store: (
            nullcontext()
        )
        self.fed: set[tuple[int, ...]] = set()

    @classmethod
    def small(cls, model: Model) -> SampledRun:
        """A model of random weights is the expert, the same with noise on its weights the amateur."""
        tokenizer = byte_tokenizer()
        expert, amateur = (Model(m.core, tokenizer, name=model.name) for m in (model, broken_copy(model)))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in amateur.core.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_((0.3 * float(weight.float().std()) * noise).to(weight.dtype))
        items = [
            Question(prompt_id=f"sampled/{i}", text=f"{i} + {i + 3} =", where=f"problem {i}")
            for i in range(PROBLEMS)
        ]
        return cls(expert, amateur, Questions(items=tuple(items)), SMALL)

    def whole(self) -> list[Sampled]:
        """Sample all batches."""
        return self._run((None,))

    def stopped(self) -> list[Sampled]:
        """Sample the first batch, stop as if killed, and let another run go on from the folder."""
        return self._run((1, None))

    def finding(self, right: Sequence[Sampled], found: Sequence[Sampled]) -> Finding | None:
        """Say what is wrong with the newest run beside a right one, or None."""
        told = first_difference(right, found)
        if told is None or told.kind != "scores" or self.fed <= {_fed(s) for s in right}:
            return told
        return Finding(
            kind="input ids", sentence=f"{told.sentence}; the amateur was given other ids than were written"
        )

    def _run(self, limits: Sequence[int | None]) -> list[Sampled]:
        self.fed = set()
        with TemporaryDirectory(prefix="twinrun-sampled-") as place, self._watched():
            folder = Path(place) / "samples"
            for limit in limits:
                store = SampleStore.create(folder, self.plan.identity, parts=self.plan.num_batches)
                try:
                    with self.around_store(store):
                        self._fill(store, limit)
                except _Stopped:
                    continue
            return list(store.sampled())

    def _fill(self, store: SampleStore, limit: int | None) -> None:
        todo = [n for n in range(self.plan.num_batches) if n not in store.done()]
        for count, number in enumerate(todo):
            if count == limit:
                raise _Stopped
            store.append(number, self.sampler.sample(self.plan.batch(number)))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Keep the rows that enter the amateur, without their padding."""

        def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
            ids, mask = given["input_ids"], given.get("attention_mask")
            for i, row in enumerate(ids):
                self.fed.add(tuple((row if mask is None else row[mask[i].bool()]).tolist()))

        with ExitStack() as undo:
            core = self.sampler.amateur.core
            undo.callback(core.register_forward_pre_hook(look, with_kwargs=True).remove)
            yield


class _Stopped(Exception):
    """The run ends here, as if killed."""


def _fed(sampled: Sampled) -> tuple[int, ...]:
    """What the amateur must be given of an answer: all of it but its last token."""
    row = sampled.trajectory
    return (*row.prompt_ids, *row.answer_ids[:-1])


def first_difference(right: Sequence[Sampled], wrong: Sequence[Sampled]) -> Finding | None:
    """Say what is wrong with a sampling beside the right one, or None: problems missing or twice, another KL."""
    names = [s.trajectory.prompt_id for s in wrong]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        return Finding(kind="samples", sentence=f"problem {twice!r} is there twice")
    found = {s.trajectory.prompt_id: s for s in wrong}
    for ours in right:
        name, theirs = ours.trajectory.prompt_id, found.get(ours.trajectory.prompt_id)
        if theirs is None:
            return Finding(
                kind="samples",
                sentence=f"problem {name!r} was marked as done, and its samples are not there",
            )
        if theirs.refused != ours.refused or theirs.trajectory.answer_ids != ours.trajectory.answer_ids:
            return Finding(
                kind="answers",
                sentence=f"problem {name!r} has another answer, or was refused: {theirs.refused}",
            )
        for step, (a, b) in enumerate(zip(ours.trajectory.kl, theirs.trajectory.kl, strict=True)):
            if abs(a - b) > ROUNDING * (1 + abs(a)):
                return Finding(
                    kind="scores",
                    sentence=f"problem {name!r}: KL at answer token {step} is {b:.4g} nats, it should be {a:.4g}",
                )
    return None
