"""A small training of scorers to plant a fault in: the training check judges it, as the verifier judges a runner."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from twinrun.errors import TrainingError
from twinrun.models.model import Model
from twinrun.prune.marking import mark
from twinrun.prune.samples import Listed, Sample
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import Scorer
from twinrun.prune.settings import TrainSettings
from twinrun.prune.targets import Targets
from twinrun.prune.train import Training

TRAINEE = "prune:train"
SAMPLES, PROMPT, ANSWER = 8, 20, 3
"""Samples of one length, so that no target of another is refused for its size alone."""


class Trainee:
    """Targets of a few random samples, and a training on them that has not begun.

    Attributes:
        model: frozen.
        training: what faults are planted in.
    """

    name = TRAINEE

    def __init__(self, model: Model) -> None:
        """Mark the samples; a second's work on a small model."""
        self.model = model
        depth = len(model.layout.layers)
        schedule = Schedule.of({1: 0.7} if depth == 2 else {1: 0.7, depth - 1: 0.5})
        self._folder = TemporaryDirectory(prefix="twinrun-trainee-")
        self.samples = Listed([_sample(i, model.vocab_size) for i in range(SAMPLES)])
        targets = mark(model, self.samples, schedule.layers, Path(self._folder.name) / "targets")
        assert isinstance(targets, Targets)
        settings = TrainSettings(schedule=schedule, batch_size=2, rows=2, watch=3, epochs=1)
        scorer = Scorer.new(model, schedule.layers)
        self.training = Training(model, self.samples, scorer, settings, targets)

    def finding(self) -> TrainingError | None:
        """What the training check says: None if the training runs to its end."""
        try:
            self.training.run(Path(self._folder.name) / "train")
        except TrainingError as error:
            return error
        return None


def _sample(index: int, vocab: int) -> Sample:
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(3, vocab, (PROMPT + ANSWER,), generator=generator).tolist()
    return Sample(f"trainee/{index}", tuple(ids[:PROMPT]), tuple(ids[PROMPT:]))
