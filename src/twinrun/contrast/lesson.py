"""What one forward of training sees: whole answers side by side in one row, and soft labels at chosen places only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from twinrun.errors import ConfigError

Label = tuple[tuple[int, ...], tuple[float, ...]]
"""Token ids and their weights, which sum to 1; all other ids of the vocabulary have weight 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One answer with the steps that are tuned. Token ids only: nothing is tokenised again.

    Attributes:
        prompt_id: id of the problem.
        ids: prompt and answer.
        start: tokens of the prompt; step 0 is the token at `ids[start]`.
        steps: the tuned steps, ascending.
        labels: what each of them should say.

    Raises:
        ConfigError: no prompt, a step outside the answer, steps out of order, or not one label a step.

    Example:
        >>> Lesson(prompt_id="a", ids=(1, 2, 3), start=2, steps=(0,), labels=(((3,), (1.0,)),)).rows
        (1,)
    """

    prompt_id: str
    ids: tuple[int, ...]
    start: int
    steps: tuple[int, ...]
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        """Refuse what has no place."""
        who = f"prompt {self.prompt_id!r:.60}"
        if not 1 <= self.start <= len(self.ids):
            raise ConfigError(
                f"{who}: start={self.start} in {len(self.ids)} tokens; give a prompt of 1 or more"
            )
        if len(self.steps) != len(self.labels) or not self.steps:
            raise ConfigError(
                f"{who}: {len(self.steps)} steps with {len(self.labels)} labels; give one a step"
            )
        if any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ConfigError(f"{who}: steps must ascend, each at most once, got {list(self.steps)!r:.80}")
        last = len(self.ids) - self.start - 1
        if self.steps[0] < 0 or self.steps[-1] > last:
            raise ConfigError(
                f"{who}: step {self.steps[-1] if self.steps[-1] > last else self.steps[0]} is not in its answer of "
                f"{last + 1} tokens (0 to {last}); the samples belong to another answer"
            )

    @property
    def rows(self) -> tuple[int, ...]:
        """Positions whose logits are tuned: the one before each tuned token."""
        return tuple(self.start + step - 1 for step in self.steps)

    @property
    def needed(self) -> tuple[int, ...]:
        """The tokens that a forward needs: up to the last tuned position; what follows cannot be seen from it."""
        return self.ids[: self.rows[-1] + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Several lessons behind one another in one row; positions begin again at 0 with each lesson.

    Attributes:
        input_ids: `[1, tokens]` int64.
        position_ids: `[1, tokens]` int64; where they begin again, another text begins, which sees none before it.
        rows: `[steps]` int64, columns of `input_ids` whose logits are tuned.
        label_ids: `[steps, most ids of a label]` int64, filled up with 0.
        label_weights: the same shape, float32, filled up with 0.
    """

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    label_ids: Tensor
    label_weights: Tensor

    @classmethod
    def of(cls, lessons: Sequence[Lesson]) -> Packed:
        """Put lessons behind one another.

        Raises:
            ConfigError: no lessons.
        """
        if not lessons:
            raise ConfigError("a batch needs at least one lesson")
        texts = [lesson.needed for lesson in lessons]
        begins = [0]
        for text in texts[:-1]:
            begins.append(begins[-1] + len(text))
        labels = [label for lesson in lessons for label in lesson.labels]
        width = max(len(ids) for ids, _ in labels)
        rows = [at + row for at, lesson in zip(begins, lessons, strict=True) for row in lesson.rows]
        return cls(
            input_ids=torch.tensor([[i for text in texts for i in text]]),
            position_ids=torch.tensor([[i for text in texts for i in range(len(text))]]),
            rows=torch.tensor(rows),
            label_ids=torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in labels]),
            label_weights=torch.tensor([[*w, *[0.0] * (width - len(w))] for _, w in labels]),
        )

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return Packed(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First column and the one behind the last of each text."""
        starts = (self.position_ids[0] == 0).nonzero()[:, 0].tolist()
        return list(zip(starts, [*starts[1:], self.input_ids.shape[1]], strict=True))
