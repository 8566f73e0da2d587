"""The two recipes of the built-in checkpoints: every number that decides what the weights become.

The training command, the model card and the tests read these; nothing here depends on torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "src" / "twinrun" / "models" / "builtin"
BUILD = ROOT / "build" / "builtin"
MAX_FOLDER_BYTES = 6_000_000

BLOCK_TOKENS, LONG_BLOCK_TOKENS, LONG_EVERY = 256, 512, 6  # every sixth batch holds long blocks
VOCAB_TOKENS = 1024
TEXT_BLOCK_SHARE, DRILL_BLOCK_SHARE = 0.12, 0.18
SYSTEM_SHARE = 0.1
SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "Solve the problem step by step.",
    "Answer with worked steps.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Architecture, data seed and schedule of one built-in checkpoint."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    steps: int
    decay_steps: int
    head_dim: int = 32
    batch_blocks: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 20
    save_every: int = 250
    evaluate_every: int = 250

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        long = len(range(0, self.steps, LONG_EVERY))
        return self.batch_blocks * (long * LONG_BLOCK_TOKENS + (self.steps - long) * BLOCK_TOKENS)


RECIPES = {
    "expert": Recipe(
        name="expert", layers=6, width=192, heads=6, kv_heads=3, feed_forward=512, steps=2000, decay_steps=700
    ),
    "amateur": Recipe(
        name="amateur",
        layers=3,
        width=128,
        heads=4,
        kv_heads=2,
        feed_forward=320,
        steps=410,
        decay_steps=60,
    ),
}
