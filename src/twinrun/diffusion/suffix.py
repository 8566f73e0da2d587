"""Suffix dropout: most of the masks far behind a block are left out of its forwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinrun.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SuffixWindow:
    """Which masks behind a block take part in its forwards: fewer with distance, none beyond a window.

    The mask at distance d (0 is the one next to the block) stays with probability
    min(1, scale * phi(decay * d / window)), phi being the density of the standard normal distribution. What stays
    keeps its position. Each block draws anew; the draw depends on the seed and the block alone, so a row
    of a batch is still the row alone.

    Source: Chen et al. 2025, "DPad", arXiv:2508.14148; defaults as in its published code.
    Differs from the published code: seeded, and one draw for all rows.

    Args:
        window: in tokens; 0 leaves out all masks behind the block.
        decay: standard deviations at the end of the window; 0 keeps the same share everywhere.
        scale: 2.5067 (the square root of 2 pi) or more keeps the nearest mask always.
        seed: of the draws.

    Raises:
        ConfigError: a negative number.

    Example:
        >>> SuffixWindow(window=2, decay=0.0, scale=3.0).keep(4, block=0)
        tensor([ True,  True, False, False])
    """

    window: int = field(
        default=256, metadata={"help": "masks behind the block that may take part, in tokens"}
    )
    decay: float = field(default=4.0, metadata={"help": "standard deviations at the end of the window"})
    scale: float = field(
        default=2.0, metadata={"help": "factor of the normal density; 2.507 keeps the nearest mask"}
    )
    seed: int = field(default=0, metadata={"help": "of the draw"})

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("window", "decay", "scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"SuffixWindow({name}={getattr(self, name)}): it must be a number from 0 on; DPad uses "
                    "window=256, decay=4, scale=2"
                )

    def keep(self, count: int, block: int) -> Tensor:
        """Say which of the `count` masks behind block number `block` stay, `[count]` booleans on the host."""
        distance = torch.arange(count, dtype=torch.float64)
        far = self.decay * distance / max(1, self.window)
        chance = self.scale * torch.exp(-far.square() / 2) / math.sqrt(2 * math.pi)
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + block)
        drawn = torch.rand(count, generator=source, dtype=torch.float64)
        return (drawn < chance) & (distance < self.window)
