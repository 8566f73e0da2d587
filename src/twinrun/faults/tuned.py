"""A batch of contrastive training to plant a fault in: the training check judges it, before the first step."""

from __future__ import annotations

from random import Random

from twinrun.contrast.lesson import Label, Lesson
from twinrun.contrast.proof import check_lessons, proven_forward
from twinrun.models.model import Model
from twinrun.runners.singlepass import SinglePass
from twinrun.verify.case import Case
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify

TUNED = "contrast:train"
SHAPES = ((3, 9), (7, 4), (2, 14), (5, 6))
"""Tokens of prompt and answer of each text: no two of a length."""
_LABEL: Label = ((0,), (1.0,))


class TunedBatch:
    """A few answers of unequal length, every step tuned, and the forward that training would run on them.

    Attributes:
        model: what is trained.
        forward: what faults are planted in.
    """

    name = TUNED

    def __init__(self, model: Model) -> None:
        """Draw the answers, and take the forward that the check passes for this model."""
        self.model = model
        self.lessons = [
            _lesson(i, prompt, answer, model.vocab_size) for i, (prompt, answer) in enumerate(SHAPES)
        ]
        self.forward, _ = proven_forward(model, self.lessons)

    def together(self) -> Verdict:
        """The training check: what is read of a batch, against one plain pass an answer."""
        return check_lessons(self.forward, self.lessons)

    def alone(self) -> list[Verdict]:
        """The same where a batch holds one step of one answer, so that nothing is padded."""
        plain = SinglePass(self.model)
        cases = [Case(label=x.prompt_id, rows=(x.needed,), starts=(len(x.needed),)) for x in self.lessons]
        return [verify(plain, self.forward, [case], explain=False) for case in cases]


def _lesson(number: int, prompt: int, answer: int, vocab: int) -> Lesson:
    rng = Random(number)
    ids = tuple(rng.randrange(3, vocab) for _ in range(prompt + answer))
    return Lesson(
        prompt_id=f"tuned/{number}",
        ids=ids,
        start=prompt,
        steps=tuple(range(answer)),
        labels=(_LABEL,) * answer,
    )
