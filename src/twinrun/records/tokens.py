"""Per-token records of texts: log-probabilities of one model, or the divergence of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Index at which two token lists part: the first unequal entry, else the length of the shorter.

    Example:
        >>> first_difference([5, 6, 7], [5, 9]), first_difference([5], [5, 6])
        (1, 1)
    """
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredText:
    """One text under one model. Entry i of the lists stands at token i; the first has no context and is None.

    Log-probabilities and entropies are in nats; entropy is of the distribution that predicted the token.
    """

    token_ids: list[int]
    tokens: list[str] | None
    logprobs: list[float | None]
    entropies: list[float | None]
    top1: list[int | None]

    @property
    def total_logprob(self) -> float:
        """Log-probability in nats of the tokens that have one: all but the first, or the last (`LogitsPolicy`)."""
        return sum(p for p in self.logprobs if p is not None)

    @property
    def perplexity(self) -> float | None:
        """Per-token perplexity of the scored tokens; None if there are none."""
        count = sum(p is not None for p in self.logprobs)
        return math.exp(-self.total_logprob / count) if count else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"total_logprob": self.total_logprob, "perplexity": self.perplexity}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastedText:
    """One text under an expert and an amateur. Entry i tells of the distributions that predict token i.

    `kl` is KL(expert || amateur) in nats over the shared ids; the first token has none. `expert_top` and
    `amateur_top` list (token id, log-probability), likeliest first.
    """

    token_ids: list[int]
    tokens: list[str] | None
    start: int
    """First token that is scored; the tokens before it are the prompt."""
    kl: list[float | None]
    expert_logprobs: list[float | None]
    amateur_logprobs: list[float | None]
    expert_top: list[list[tuple[int, float]] | None]
    amateur_top: list[list[tuple[int, float]] | None]
    shared_vocab: int
    dropped_mass_max: float
    """Largest mass, on either side, on ids that the other lacks."""

    def chosen(self, beta: float = 0.4) -> list[int]:
        """Token indices whose KL exceeds `beta` nats (LightReasoner's step selection, arXiv:2510.07962)."""
        return [i for i, value in enumerate(self.kl) if value is not None and value > beta]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)
