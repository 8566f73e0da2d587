"""What a rule for leaving tokens out sees in front of a layer, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from twinrun.errors import ConfigError


def is_refresh(step: int, every: int | None) -> bool:
    """Whether step `step` of a block computes everything: the first does, and every `every`-th (None: no other).

    Example:
        >>> [is_refresh(step, 3) for step in range(4)]
        [True, False, False, True]
    """
    return step == 0 or (every is not None and step % every == 0)


def check_refresh(every: int | None) -> None:
    """Refuse a number of steps below 1.

    Raises:
        ConfigError: it is one.
    """
    if every is not None and every < 1:
        raise ConfigError(f"refresh_every={every}; use 1 or more steps, or None for never")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The tokens that have come as far as a layer where some may drop out (a cut).

    Attributes:
        layer: index of the layer; its input is what has been computed.
        num_layers: layers of the model.
        now: inputs of the watched layers in this step, `[layers, rows, tokens, width]`.
        then: the same of the step in which each token last went past this cut, aligned by position.
        real: `[rows, tokens]`; False is padding of a row that has fewer tokens left than another.
        changed: `[rows, tokens]`, whether another id stands at the position than when it was last computed.
        confidence: `[rows, tokens]`, probability of the last proposal that was read off this token; 0 where there
            is none or it has been committed. None for a rule whose skipped tokens are candidates.
        tokens: tokens of the block.
        commits: changed tokens of each row; empty where the rule does not count them.
    """

    layer: int
    num_layers: int
    now: Tensor
    then: Tensor
    real: Tensor
    changed: Tensor
    confidence: Tensor | None
    tokens: int
    commits: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which tokens go on.

    Attributes:
        keep: `[rows, tokens]` booleans.
        counts: kept tokens of each row where they are known without asking the device, else None.
        notes: `[rows, tokens]` float32 tensors that explain the choice, by name.
    """

    keep: Tensor
    counts: list[int] | None = None
    notes: dict[str, Tensor]


class Rule(Protocol):
    """A rule for leaving tokens out of a block forward."""

    @property
    def candidates(self) -> bool:
        """Whether a token that was left out competes for a commit with its last confidence."""

    @property
    def counts_commits(self) -> bool:
        """Whether `choose` must know how many tokens of each row have changed."""

    def watched(self, num_layers: int) -> dict[int, tuple[int, ...]]:
        """For each cut (tokens drop out in front of this layer) the layers whose inputs are compared there.

        None of these lies behind the cut, nor in front of an earlier one.
        """

    def skips_at(self, step: int) -> bool:
        """Whether anything may be left out in this step of a block."""

    def choose(self, seen: Seen) -> Decision:
        """Which tokens go on."""
