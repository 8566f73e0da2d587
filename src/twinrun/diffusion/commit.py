"""Which of the proposed tokens a step commits: a fixed number, all that are sure enough, or a factor of both.

A rule sees confidences and which positions are open, for all rows at once, and returns a choice among the open ones.
Every rule chooses at least one position in every row that has an open one, so that every step makes progress. Equal
confidences are taken in the order of their positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from twinrun.errors import ConfigError


@runtime_checkable
class Commit(Protocol):
    """A rule by which a step chooses what to commit. Frozen and without state: a run hands in all it needs."""

    def choose(self, confidence: Tensor, open: Tensor, *, step: int, size: int) -> Tensor:
        """Choose positions of one block.

        Args:
            confidence: `[rows, block]` in [0, 1]; what stands at closed positions has no meaning.
            open: `[rows, block]` booleans.
            step: number of this step inside its block, from 0.
            size: positions that were open at the block's first step.

        Returns:
            `[rows, block]` booleans: a subset of `open`, not empty in any row where `open` is not.
        """


@dataclass(frozen=True, slots=True)
class Quota:
    """A fixed number of tokens a step: the surest `n // S + (i < n % S)` of n masks in step i of S.

    Source: Nie et al. 2025, arXiv:2502.09992, section 2.4, and `get_num_transfer_tokens` of the published code.

    Args:
        steps: steps a block, at least 1; None is one token a step.

    Raises:
        ConfigError: steps below 1.

    Example:
        >>> rule = Quota(2)
        >>> rule.choose(torch.tensor([[0.2, 0.9, 0.8]]), torch.ones(1, 3, dtype=torch.bool), step=0, size=3)
        tensor([[False,  True,  True]])
    """

    steps: int | None = field(default=None, metadata={"help": "steps a block; unset is one token a step"})

    def __post_init__(self) -> None:
        """Check the range."""
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"Quota(steps={self.steps}): a block takes at least 1 step; give 1 or more")

    def count(self, step: int, size: int) -> int:
        """Tokens of step `step` in a block of `size` masks; at least 1."""
        if self.steps is None:
            return 1
        return max(1, size // self.steps + (step < size % self.steps))

    def choose(self, confidence: Tensor, open: Tensor, *, step: int, size: int) -> Tensor:
        """Choose the surest ones."""
        count = self.count(step, size)
        if count == 1:
            return _surest(confidence, open) & open
        return (_ranks(confidence, open) < count) & open


@dataclass(frozen=True, slots=True)
class Threshold:
    """All tokens whose probability is at least `p`, and always the surest one.

    Source: Wu et al. 2025, Fast-dLLM, arXiv:2505.22618, section 3.3 (confidence-aware parallel decoding).

    Args:
        p: from 0 (a block in one step) to 1 (one token a step, and those with probability 1).

    Raises:
        ConfigError: p outside [0, 1].

    Example:
        >>> rule = Threshold(0.9)
        >>> rule.choose(torch.tensor([[0.9, 0.89, 0.95]]), torch.ones(1, 3, dtype=torch.bool), step=0, size=3)
        tensor([[ True, False,  True]])
    """

    p: float = field(default=0.9, metadata={"help": "commit every token at least this probable, in [0, 1]"})

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.p <= 1:
            raise ConfigError(
                f"Threshold(p={self.p}): a probability lies in [0, 1]; 1 commits one token a step, "
                "as Quota() does"
            )

    def choose(self, confidence: Tensor, open: Tensor, *, step: int, size: int) -> Tensor:
        """Choose all that reach `p`, and the surest."""
        return ((confidence >= self.p) | _surest(confidence, open)) & open


@dataclass(frozen=True, slots=True)
class Factor:
    """The n surest tokens, for the largest n with (n + 1) * (1 - c_n) < f, c_n the n-th largest confidence.

    Source: Wu et al. 2025, Fast-dLLM, arXiv:2505.22618, section 3.3 and Theorem 1.
    Differs from the published code: that takes one token too many where only the last candidate fails.

    Args:
        f: at least 0; 0 is one token a step.

    Raises:
        ConfigError: f is negative or not a number.

    Example:
        >>> rule = Factor(1.0)
        >>> rule.choose(torch.tensor([[0.99, 0.2, 0.99, 0.99]]), torch.ones(1, 4, dtype=torch.bool), step=0, size=4)
        tensor([[ True, False,  True,  True]])
    """

    f: float = field(default=1.0, metadata={"help": "bound on (n + 1) * (1 - confidence of the n-th token)"})

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.f < math.inf:
            raise ConfigError(f"Factor(f={self.f}): the factor is a number from 0 on; the paper uses 1")

    def choose(self, confidence: Tensor, open: Tensor, *, step: int, size: int) -> Tensor:
        """Choose the surest ones that satisfy the bound together; the bound grows with n, so they are the first."""
        ranks = _ranks(confidence, open)
        passes = (ranks + 2) * (1 - confidence) < self.f
        return (passes | (ranks == 0)) & open


def _ranks(confidence: Tensor, open: Tensor) -> Tensor:
    """`[rows, block]` int64: 0 for the surest open position, and so on; equal ones by position, closed ones last."""
    order = confidence.masked_fill(~open, -math.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _surest(confidence: Tensor, open: Tensor) -> Tensor:
    """`[rows, block]` booleans: the first of the largest confidences among the open positions."""
    best = confidence.masked_fill(~open, -math.inf).argmax(dim=1, keepdim=True)
    return torch.zeros_like(open).scatter_(1, best, True)
