"""The training check: a batch must give at every chosen position what each answer gives alone, or nothing is trained.

The forward that training runs is a runner like any other here, so `twinrun.verify` judges it against one plain pass an
answer. Padding that is read, texts that see each other, positions that go on counting: all are another model, and the
verdict says so before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from twinrun.contrast.lesson import Label, Lesson, Packed
from twinrun.contrast.loss import chosen_logits
from twinrun.errors import VerificationFailed
from twinrun.models.model import Model
from twinrun.records.scores import Scores
from twinrun.runners.runner import ModelScorer
from twinrun.runners.singlepass import SinglePass
from twinrun.verify.case import Case
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify

ANSWERS, TOKENS = 4, 512
"""Answers that the check puts into a batch, and most tokens of each: enough for every kind of mix-up."""
_NOTHING: Label = ((0,), (1.0,))


class TrainingForward(ModelScorer):
    """The forward of training as a runner: rows that are scored together stand in one packed batch.

    Args:
        model: what `twinrun.load` returns.
        together: one forward for the batch; False is one forward an answer.

    Example:
        >>> TrainingForward(load("builtin:amateur")).score_batch([[5, 6, 7], [8, 9]], [1, 1])[1].positions
        tensor([0, 1])
    """

    kind = "training-forward"

    def __init__(self, model: Model, *, together: bool = True) -> None:
        """Keep the model."""
        super().__init__(model)
        self.together = together

    def logits_of(self, module: nn.Module, lessons: Sequence[Lesson]) -> Tensor:
        """Logits of all chosen positions, `[steps, vocab]`, as training computes them."""
        batch = Packed.of(lessons).to(self.model.device)
        return chosen_logits(module, batch, together=self.together, keeps=keeps_rows(self.model))

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        lessons = [_lesson(row, start) for row, start in zip(rows, starts, strict=True)]
        logits = torch.split(self.logits_of(self.model.core, lessons), [len(each.steps) for each in lessons])
        return [
            Scores.of_logits(row, start, part) for row, start, part in zip(rows, starts, logits, strict=True)
        ]


def keeps_rows(model: Model) -> bool:
    """Whether the model's forward computes the logits of named positions only."""
    return "logits_to_keep" in model.accepts


def check_lessons(forward: TrainingForward, lessons: Sequence[Lesson]) -> Verdict:
    """Judge the training forward on a batch of real answers of unequal length, against one plain pass an answer.

    Returns:
        The verdict; `passed` says whether training on this forward is training on the chosen positions.

    Cost: four passes over at most `ANSWERS` answers, two of them one precision up.
    """
    longest = sorted(lessons, key=lambda lesson: len(lesson.needed))
    step = max(1, len(longest) // ANSWERS)
    picked = longest[::step][:ANSWERS]  # short and long ones in one batch
    rows = tuple(lesson.needed[:TOKENS] for lesson in picked)
    starts = tuple(min(lesson.start, len(row)) for lesson, row in zip(picked, rows, strict=True))
    case = Case(label="a batch of answers", rows=rows, starts=starts)
    return verify(SinglePass(forward.model), forward, [case])


def proven_forward(model: Model, lessons: Sequence[Lesson]) -> tuple[TrainingForward, Verdict]:
    """Return the fastest training forward that this model runs rightly, with its verdict.

    Raises:
        VerificationFailed: even one forward an answer gives something else.
    """
    forward = TrainingForward(model)
    verdict = check_lessons(forward, lessons)
    if not verdict.passed:
        forward = TrainingForward(model, together=False)
        verdict = check_lessons(forward, lessons)
    if not verdict.passed:
        raise VerificationFailed(
            f"training would not read the chosen positions of {model.name}: {verdict.reason}; nothing was trained"
        )
    return forward, verdict


def _lesson(row: Sequence[int], start: int) -> Lesson:
    """All positions of a row from `start - 1` to its last; the id behind its end is never fed."""
    steps = tuple(range(len(row) - start + 1))
    return Lesson(
        prompt_id="", ids=(*row, row[-1]), start=start, steps=steps, labels=(_NOTHING,) * len(steps)
    )
