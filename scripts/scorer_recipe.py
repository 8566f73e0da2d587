"""The recipe of the scorers of `builtin:long`: every number that decides what they become."""

from __future__ import annotations

from dataclasses import dataclass

from long_data import START

from twinrun.prune.schedule import Schedule
from twinrun.prune.settings import TrainSettings

VARIANTS = {
    "full": {},
    "without-mse": {"mse_weight": 0.0},
    "without-ranking": {"rank_weight": 0.0},
    "without-both": {"mse_weight": 0.0, "rank_weight": 0.0},
    "offline": {"offline": True},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRecipe:
    """Data, schedule and steps."""

    stages: tuple[tuple[str, str], ...] = (("1", "0.705"), ("2", "0.497"), ("3", "0.35"))
    """A model of two million parameters finds what it is asked for in its first layers; behind layer 4 even a random
    choice costs nothing. So it is pruned where it matters."""
    samples: int = 480
    held_out: int = 150
    tokens: int = 768
    digits: int = 5
    epochs: int = 2
    batch: int = 8
    learning_rate: float = 3e-3
    seed: int = 7
    begin: str = START

    @property
    def schedule(self) -> Schedule:
        """The stages as a schedule."""
        return Schedule.of({int(layer): float(keep) for layer, keep in self.stages})

    def settings(self, variant: str) -> TrainSettings:
        """Settings of one variant of the ablation."""
        return TrainSettings(
            schedule=self.schedule,
            epochs=self.epochs,
            batch_size=self.batch,
            rows=self.batch,
            learning_rate=self.learning_rate,
            seed=self.seed,
            save_every=20,
            **VARIANTS[variant],
        )
