"""Score tokens by chance, so that a row draws the same alone and in any batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from twinrun.prune.selector import Seen

_GOLDEN, _MIX1, _MIX2 = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Random:
    """Draws from a hash of seed, stage, the row's prompt and the token's position.

    No generator with a state: a row is drawn alike alone, in a batch and among beams of one prompt, and two prompts are
    drawn differently. Where the model is fed embeddings and has no ids, all prompts are drawn alike.

    Args:
        seed: another seed, another draw.

    Cost: a few integer operations a token.
    """

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        """Keep the seed."""
        self.seed = seed

    def score(self, seen: Seen) -> Tensor:
        """Uniform scores in [0, 1)."""
        stage = torch.tensor(self.seed * 4096 + seen.stage, device=seen.positions.device)
        mixed = _mixed(seen.positions + _mixed(stage + _prompt_key(seen))[:, None])
        return _shifted(mixed, 40).float() / 2**24


def _prompt_key(seen: Seen) -> Tensor:
    """One number a row, int64, from the tokens that are left, padding aside."""
    if seen.ids is None:
        return seen.positions.new_zeros(seen.positions.shape[0])
    each = _mixed(seen.ids * 1_000_003 + seen.positions)
    return each.masked_fill(~seen.real, 0).sum(1)


def _mixed(value: Tensor) -> Tensor:
    """SplitMix64 (Steele et al. 2014, OOPSLA, figure 17) on int64, which wraps like its unsigned arithmetic."""
    value = value + _GOLDEN
    value = (value ^ _shifted(value, 30)) * _MIX1
    value = (value ^ _shifted(value, 27)) * _MIX2
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
