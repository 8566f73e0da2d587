"""The recipe of `builtin:long`: every number that decides what its weights become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STAGES, SHORTEST = 5, 128  # each stage is twice as long as the one before; no row is shorter than this


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRecipe:
    """Architecture, data seed and schedule. The defaults are those of `builtin:long`."""

    name: str = _option("long", "what the checkpoint is called")
    layers: int = _option(12, "layers")
    width: int = _option(128, "width of the hidden states")
    heads: int = _option(4, "attention heads")
    kv_heads: int = _option(2, "key/value heads")
    head_dim: int = _option(32, "width of a head")
    feed_forward: int = _option(352, "width inside the feed-forward part")
    length: int = _option(2048, "tokens of a row in the last stage, a multiple of 16")
    stage_steps: int = _option(900, "steps of each stage before the last")
    batch_tokens: int = _option(4096, "tokens per step")
    steps: int = _option(6500, "training steps")
    late: int = _option(
        5500, "step from which chains of variables come more often and shorter rows every second step"
    )
    warmup_steps: int = _option(100, "first steps, with rising learning rate")
    decay_steps: int = _option(1000, "last steps, with falling learning rate")
    learning_rate: float = _option(3e-3, "learning rate between the two")
    weight_decay: float = _option(0.1, "weight decay of the matrices")
    clip: float = _option(1.0, "largest norm of the gradient")
    seed: int = _option(20, "seed of weights and texts")
    digits: int = _option(5, "digits of the numbers to find")
    save_every: int = _option(100, "steps between two checkpoints")
    evaluate_every: int = _option(500, "steps between two measurements on held-out texts")
    batch_blocks: int = _option(1, "items per step; an item is a whole batch of rows")

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.length < SHORTEST or self.length % 16:
            raise SystemExit(f"--length must be a multiple of 16 from {SHORTEST} on, got {self.length}")
        if self.batch_tokens < self.length:
            raise SystemExit(f"--batch-tokens {self.batch_tokens} has no room for a row of {self.length}")

    @property
    def stages(self) -> list[int]:
        """Tokens of a row in each stage."""
        return [max(SHORTEST, self.length >> (STAGES - 1 - stage)) for stage in range(STAGES)]

    def row(self, step: int) -> int:
        """Tokens of a row in a step: its stage's length; every third step that of an earlier stage, in turn.

        Late: the last stage's length; every second step one of the two before it, in turn.
        """
        stage = min(step // self.stage_steps, STAGES - 1)
        if step >= self.late:
            stage = STAGES - 1 if step % 2 == 0 else STAGES - 2 - step // 2 % 2
        elif step % 3 == 2 and stage:
            stage = step // 3 % stage
        return self.stages[stage]

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return sum(self.batch_tokens // row * row for row in map(self.row, range(self.steps)))
