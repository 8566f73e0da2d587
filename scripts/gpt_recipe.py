"""The recipe of a small GPT: every number that decides what its weights become. The command line is made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twinrun.errors import ConfigError


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
    warmup_steps: int = _option(
        60, "first steps, with rising learning rate; as large a share of other --steps"
    )
    decay_steps: int = _option(
        700, "last steps, with falling learning rate; as large a share of other --steps"
    )
    learning_rate: float = _option(3e-3, "learning rate between the two")
    weight_decay: float = _option(0.1, "weight decay of the matrices")
    clip: float = _option(1.0, "largest norm of the gradient")
    seed: int = _option(20, "seed of weights and windows")
    save_every: int = _option(50, "steps between two checkpoints")
    evaluate_every: int = _option(100, "steps between two validation losses")

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name, choices in {"level": ("byte", "char"), "norm": ("pre", "post")}.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"--{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}")
        if self.block < 8 or self.block % 4:
            raise ConfigError(f"--block must be a multiple of 4 from 8 on, got {self.block}")
        for name in (
            "layers",
            "width",
            "heads",
            "feed_forward",
            "batch_blocks",
            "steps",
            "save_every",
            "evaluate_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ConfigError(f"--width must be a multiple of --heads ({self.heads}), got {self.width}")
        if not 0 < self.learning_rate < 1 or not self.clip > 0 or not self.weight_decay >= 0:
            rates = f"{self.learning_rate}, {self.clip}, {self.weight_decay}"
            raise ConfigError(
                "--learning-rate must be between 0 and 1, --clip above 0, --weight-decay 0 or more, got "
                + rates
            )
        if min(self.warmup_steps, self.decay_steps) < 0 or self.warmup_steps + self.decay_steps > self.steps:
            raise ConfigError(
                f"--warmup-steps ({self.warmup_steps}) and --decay-steps ({self.decay_steps}) must fit into "
                f"--steps ({self.steps}); shorten them with it"
            )

    def window(self, step: int) -> int:
        """Tokens of each window in a step: a quarter of the block, every third step half, every sixth all of it."""
        return self.block // (1 if step % 6 == 5 else 2 if step % 6 == 2 else 4)

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.batch_blocks * sum(self.window(step) for step in range(self.steps))


def scaled(steps: int) -> dict[str, int]:
    """Warm-up and falling steps of a run of another length, in the default's proportions."""
    usual = GPTRecipe()
    return {name: getattr(usual, name) * steps // usual.steps for name in ("warmup_steps", "decay_steps")}
