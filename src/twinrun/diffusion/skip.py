"""Token skip: tokens whose early hidden states have not moved leave out the deeper layers of a block forward.

A rule says in front of which layers tokens may drop out and which of them do; `twinrun.diffusion.skipped` runs it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from twinrun.diffusion.rule import Decision, Seen, check_refresh, is_refresh
from twinrun.diffusion.skipped import Skipping
from twinrun.diffusion.wiring import Wiring
from twinrun.errors import ConfigError
from twinrun.models.parts import Parts

LAYER_K, DEPTH = 18, 32
"""The default `layer_k` and the number of layers of the model it is for (LLaDA-8B)."""


def scaled_layer_k(num_layers: int) -> int:
    """The default share of layers, 18 of 32, of a model of another depth; 2 at least."""
    return min(max(2, round(LAYER_K * num_layers / DEPTH)), num_layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSkip:
    """Leave the deeper layers out for tokens that are stable in the first ones.

    A token is stable when, against the hidden states of its own position the last time that it went through all
    layers, the lowest cosine over the inputs of layers 1 to `layer_k` - 1 is at least `outlier` and their mean
    is above `threshold`. It keeps its deeper keys and values, its final hidden state, proposal and confidence. A
    token whose id has changed since then is never stable.

    Source: the public code with `skip_layer_k`, `skip_threshold`, `skip_outlier` (no paper), put right.
    Differs from that code: compared by position, not by row; against the last whole computation and not the last step,
    so drift cannot add up unseen; rotary positions are absolute; what a skipped token shows is its own last result, not
    layer `layer_k` through the head; every row has its own set; neighbours of a changed token are computed.

    Attributes:
        layer_k: layers that run for every token, 2 to the model's number of layers (then nothing is skipped).
            `for_depth` scales the default to another model.
        threshold: the mean cosine must be above it, 0 to 1; at 1 nothing is skipped.
        outlier: the lowest cosine must reach it, -1 to 1.
        refresh_every: every so many steps of a block all its tokens are computed; None is never, 1 is always.
        neighbours: tokens so near to one that has changed are not skipped either; 0 lets them. The default is what
            measurement favours (docs/token-skip.md).

    Raises:
        ConfigError: a value outside its range.

    Example:
        >>> TokenSkip.for_depth(24, refresh_every=4).layer_k
        14
    """

    layer_k: int = LAYER_K
    threshold: float = 0.9999
    outlier: float = 0.7
    refresh_every: int | None = None
    neighbours: int = 2

    def __post_init__(self) -> None:
        """Refuse what is outside its range."""
        if self.layer_k < 2:
            raise ConfigError(f"layer_k={self.layer_k} compares nothing; use 2 or more")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold} is no mean cosine; use 0 to 1")
        if not -1 <= self.outlier <= 1:
            raise ConfigError(f"outlier={self.outlier} is no cosine; use -1 to 1")
        check_refresh(self.refresh_every)
        if self.neighbours < 0:
            raise ConfigError(f"neighbours={self.neighbours}; use 0 or more tokens")

    @classmethod
    def for_depth(cls, num_layers: int, **settings: Any) -> TokenSkip:
        """`layer_k` as `scaled_layer_k` has it for a model of so many layers; other settings by name."""
        return cls(layer_k=scaled_layer_k(num_layers), **settings)

    @property
    def candidates(self) -> bool:
        """A skipped token competes with its last confidence."""
        return True

    @property
    def counts_commits(self) -> bool:
        """How many tokens have changed does not matter here."""
        return False

    def start(self, parts: Parts, wiring: Wiring | None = None) -> Skipping:
        """Begin a run.

        Raises:
            ConfigError: the model has fewer layers than `layer_k`.
        """
        return Skipping(parts, self, wiring)

    def watched(self, num_layers: int) -> dict[int, tuple[int, ...]]:
        """One cut, in front of `layer_k`, where the inputs of layers 1 to `layer_k` - 1 are compared.

        Raises:
            ConfigError: the model has fewer layers than `layer_k`.
        """
        if self.layer_k > num_layers:
            near = scaled_layer_k(num_layers)
            raise ConfigError(f"layer_k={self.layer_k}, but the model has {num_layers} layers; try {near}")
        return {} if self.layer_k == num_layers else {self.layer_k: tuple(range(1, self.layer_k))}

    def skips_at(self, step: int) -> bool:
        """Every step but those of `refresh_every`."""
        return not is_refresh(step, self.refresh_every)

    def choose(self, seen: Seen) -> Decision:
        """Compare every token with itself, in all rows and layers at once."""
        cosines = torch.cosine_similarity(seen.now.float(), seen.then.float(), dim=-1).clamp(max=1)
        low = mean = cosines[0]
        if len(cosines) > 1:
            low, mean = cosines.amin(0), cosines.mean(0).clamp(max=1)
        stable = mean > self.threshold
        if len(cosines) > 1 or self.outlier > self.threshold:
            stable &= low >= self.outlier
        moved = seen.changed
        if self.neighbours:
            alone = moved.float()  # float64 where a verdict computes one precision up
            moved = alone @ _near(moved.shape[1], self.neighbours, moved.device).to(alone.dtype) > 0
        return Decision(keep=moved | ~stable, notes={"cosine_mean": mean, "cosine_low": low})


@functools.lru_cache(maxsize=16)
def _near(tokens: int, distance: int, device: torch.device) -> torch.Tensor:
    """`[tokens, tokens]`: 1 for pairs of tokens that are at most so far apart, else 0."""
    with torch.inference_mode(False):
        at = torch.arange(tokens, device=device)
        return ((at - at[:, None]).abs() <= distance).float()
