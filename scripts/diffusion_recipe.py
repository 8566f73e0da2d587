"""The recipe of `builtin:diffusion`: every number that decides what its weights become."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionRecipe:
    """Architecture, data seed and schedule. The defaults are those of `builtin:diffusion`."""

    name: str = _option("diffusion", "what the checkpoint is called")
    layers: int = _option(6, "layers")
    width: int = _option(128, "width of the hidden states")
    heads: int = _option(4, "attention heads")
    feed_forward: int = _option(344, "width inside the feed-forward part")
    batch_blocks: int = _option(48, "rows per step")
    steps: int = _option(4600, "training steps")
    warmup_steps: int = _option(100, "first steps, with rising learning rate")
    decay_steps: int = _option(1400, "last steps, with falling learning rate")
    learning_rate: float = _option(2e-3, "learning rate between the two")
    weight_decay: float = _option(0.1, "weight decay of the matrices")
    clip: float = _option(1.0, "largest norm of the gradient")
    seed: int = _option(20, "seed of weights, problems and masks")
    save_every: int = _option(100, "steps between two checkpoints")
    evaluate_every: int = _option(250, "steps between two measurements on held-out problems")

    def row(self, step: int) -> tuple[int, int]:
        """Tokens of a row in a step, and the most steps that its problems have."""
        if step % 40 == 39:
            return 320, 5
        return {3: (96, 2), 7: (160, 5)}.get(step % 8, (64, 1))

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.batch_blocks * sum(self.row(step)[0] for step in range(self.steps))
