"""The recipe of a small GPT: every number that decides what its weights become. The command line is made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTRecipe:
    """Architecture, data seed and schedule. The defaults are those of `builtin:gpt`."""

    name: str = _option("gpt", "what the checkpoint is called")
    level: str = _option("byte", "what a token is: byte or char")
    norm: str = _option("pre", "where the norms stand: pre or post")
    layers: int = _option(4, "decoder layers")
    width: int = _option(256, "width of the hidden states")
    heads: int = _option(4, "attention heads")
    feed_forward: int = _option(768, "width inside the feed-forward part")
    block: int = _option(1024, "longest text in tokens, a multiple of 4")
    batch_blocks: int = _option(8, "windows per step")
    steps: int = _option(2000, "training steps")
    warmup_steps: int = _option(60, "first steps, with rising learning rate")
    decay_steps: int = _option(700, "last steps, with falling learning rate")
    learning_rate: float = _option(3e-3, "learning rate between the two")
    weight_decay: float = _option(0.1, "weight decay of the matrices")
    clip: float = _option(1.0, "largest norm of the gradient")
    seed: int = _option(20, "seed of weights and windows")
    save_every: int = _option(50, "steps between two checkpoints")
    evaluate_every: int = _option(100, "steps between two validation losses")

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.level not in ("byte", "char"):
            raise SystemExit(f"--level must be byte or char, got {self.level!r}")
        if self.block < 8 or self.block % 4:
            raise SystemExit(f"--block must be a multiple of 4 from 8 on, got {self.block}")

    def window(self, step: int) -> int:
        """Tokens of each window in a step: a quarter of the block, every third step half, every sixth all of it."""
        return self.block // (1 if step % 6 == 5 else 2 if step % 6 == 2 else 4)

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.batch_blocks * sum(self.window(step) for step in range(self.steps))
