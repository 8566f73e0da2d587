"""Lessons out of samples: what contrast chose, and two baselines that tune as many tokens in as many forwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from twinrun.contrast.lesson import Label, Lesson
from twinrun.contrast.samples import StepSample, Trajectory
from twinrun.contrast.store import Sampled
from twinrun.errors import ConfigError, SamplesError


def contrast_lessons(sampled: Iterable[Sampled], beta: float | None = None) -> list[Lesson]:
    """One lesson an answer that has kept steps.

    Source: LightReasoner (arXiv:2510.07962): steps with KL above beta, labels v_C.

    Args:
        sampled: from a `SampleStore`.
        beta: keep steps with KL above this; None keeps all.

    Raises:
        SamplesError: nothing is left.
        ConfigError: a step beyond its answer.
    """
    found = [
        _lesson(each.trajectory, kept)
        for each in sampled
        if each.refused is None and (kept := _above(each.steps, beta))
    ]
    return _some(found, beta)


def uniform_lessons(sampled: Sequence[Sampled], beta: float | None, seed: int = 0) -> list[Lesson]:
    """As many steps an answer as contrast keeps, drawn at random from all of its steps, on their contrast labels.

    Args:
        sampled: samples that hold every step, made with a beta below every KL.
        beta: what contrast would keep.
        seed: of the draw.

    Raises:
        SamplesError: samples without the other steps.
    """
    if beta is None:
        raise ConfigError("method uniform draws as many steps as contrast keeps; say which with beta")
    found = []
    for each in sampled:
        count = len(_above(each.steps, beta))
        if each.refused is None and count:
            rng = Random(f"uniform/{seed}/{each.trajectory.prompt_id}")
            found.append(
                _lesson(each.trajectory, sorted(rng.sample(each.steps, count), key=lambda s: s.step))
            )
    held = [s for s in sampled if s.refused is None]
    if found and all(len(_above(s.steps, beta)) == len(s.steps) for s in held):
        raise SamplesError(
            f"the samples hold only steps with KL above {beta}, so there is nothing to draw from; sample with a lower "
            "--beta (below 0 keeps every step)"
        )
    return _some(found, beta)


def sft_lessons(
    sampled: Sequence[Sampled], beta: float | None, is_right: Callable[[Trajectory], bool], seed: int = 0
) -> list[Lesson]:
    """Right answers of the expert, whole, dealt out in pieces: each update tunes as many tokens as contrast does.

    Lesson i of contrast has k steps; lesson i here tunes the next k tokens of the right answers, taken in random
    order, each from its first token to its last. A piece may be shorter at an answer's end, what it lacks is made up
    for in the next one; so lessons, and tuned tokens in all and an update, are those of contrast.

    Args:
        sampled: the samples that contrast is trained on.
        beta: what contrast keeps.
        is_right: whether an answer is right.
        seed: of the order of answers.

    Raises:
        SamplesError: no right answer.
    """
    sizes = [len(lesson.steps) for lesson in contrast_lessons(sampled, beta)]
    right = [s.trajectory for s in sampled if s.refused is None and s.trajectory.answer_ids]
    right = [t for t in right if is_right(t)]
    if not right:
        raise SamplesError(
            "no answer of the expert is right, so there is nothing to tune on; check the references"
        )
    order = Random(f"sft/{seed}").sample(right, len(right))
    found, at, step, owed = [], 0, 0, 0
    for size in sizes:
        answer = order[at % len(order)]
        steps = range(step, min(step + size + owed, len(answer.answer_ids)))
        owed += size - len(steps)
        labels: tuple[Label, ...] = tuple(((answer.answer_ids[i],), (1.0,)) for i in steps)
        found.append(_build(answer, tuple(steps), labels))
        step = steps.stop
        if step == len(answer.answer_ids):
            at, step = at + 1, 0
    return found


def split(lessons: Sequence[Lesson], share: float, seed: int = 0) -> tuple[list[Lesson], list[Lesson]]:
    """Training and validation lessons, told apart by a hash of their problem; all lessons of a problem go together.

    Raises:
        SamplesError: a side that should have lessons has none.
    """
    train: list[Lesson] = []
    kept: list[Lesson] = []
    for lesson in lessons:
        digest = hashlib.sha256(f"{seed}/{lesson.prompt_id}".encode()).digest()
        (kept if int.from_bytes(digest[:8]) < share * 2**64 else train).append(lesson)
    if not train or (share > 0 and not kept):
        raise SamplesError(
            f"{len(lessons)} lessons split into {len(train)} for training and {len(kept)} for validation; sample more "
            "problems, or change the validation share"
        )
    return train, kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Tokens that pass through the model in one round over all lessons.

    Attributes:
        lessons: answers.
        steps: tuned tokens.
        packed: tokens of one forward an answer, up to its last tuned position.
        row_per_step: tokens of one forward a tuned token, each over its whole prefix, without any padding.
    """

    lessons: int
    steps: int
    packed: int
    row_per_step: int

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> Cost:
        """Count."""
        return cls(
            lessons=len(lessons),
            steps=sum(len(lesson.steps) for lesson in lessons),
            packed=sum(len(lesson.needed) for lesson in lessons),
            row_per_step=sum(row + 1 for lesson in lessons for row in lesson.rows),
        )

    @property
    def saved(self) -> float:
        """How many times fewer forward tokens a tuned token costs."""
        return self.row_per_step / self.packed


def _above(steps: Iterable[StepSample], beta: float | None) -> list[StepSample]:
    return [s for s in steps if beta is None or s.kl > beta]


def _lesson(answer: Trajectory, steps: Sequence[StepSample]) -> Lesson:
    labels = tuple((s.token_ids, s.weights) for s in steps)
    return _build(answer, tuple(s.step for s in steps), labels)


def _build(answer: Trajectory, steps: tuple[int, ...], labels: tuple[Label, ...]) -> Lesson:
    ids = answer.prompt_ids + answer.answer_ids
    return Lesson(
        prompt_id=answer.prompt_id, ids=ids, start=len(answer.prompt_ids), steps=steps, labels=labels
    )


def _some(found: list[Lesson], beta: float | None) -> list[Lesson]:
    if not found:
        kept = "" if beta is None else f" with KL above {beta}"
        raise SamplesError(f"the samples hold no steps{kept}; sample more problems, or lower beta")
    return found
