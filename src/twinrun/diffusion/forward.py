"""How the tokens of a feed go through the layers: all through all, unless a skip policy says otherwise.

A skip policy is a frozen settings object with `start(parts)`, which makes a `BlockForward` for one run:

    class TokenSkip:                                       # settings, shared by all runs
        def start(self, parts: Parts) -> BlockForward: ...

    class _Skipping:                                       # state, one run's own
        wants_layers = True                                # ask full forwards for the hidden states of all layers
        wants_confidence = False                           # ask for proposals also where scoring needs none
        def begin(self) -> None: ...                       # a new block: forget everything
        def after_full(self, feed, layers) -> None: ...    # take the block's part of a full forward, by position
        def __call__(self, feed) -> Passed: ...            # one cached step

The order of calls in a block is `begin`, then in each step either `after_full` (step 0, and every step that refreshes:
the full forward has run, all slots are new) or `__call__`. Full forwards never skip. `feed` has the same tokens in all
calls of one block, also in `after_full`, where `layers[l]` `[rows, canvas, width]` is the input of layer l over the
whole canvas (the feed's tokens stand in `feed.columns`) and `layers[-1]` the output of the last layer. `layers` is
empty unless `wants_layers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from twinrun.diffusion.feed import Feed
from twinrun.models.parts import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What came out of the layers for the tokens of a feed.

    Attributes:
        hidden: `[rows, tokens, width]` behind the last layer (before the norm). Of a token that was not computed it
            is the last one that was, or anything if `fresh` is False there.
        fresh: `[rows, tokens]` booleans, True where `hidden` is new: only there logits are computed and a new proposal
            is made, elsewhere the last proposal and its confidence stand. None is everywhere.
        candidates: `[rows, tokens]` booleans: False where the last proposal may not be committed in this step, unless
            its row has no other. None is everywhere.
        token_layers: tokens times layers that were computed, over all rows; None is all of them.
        notes: tensors for a probe (cosines, the skip decision, ...), by name; each with its meaning in the policy's
            docstring.
    """

    hidden: Tensor
    fresh: Tensor | None = None
    candidates: Tensor | None = None
    token_layers: int | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)


class BlockForward(Protocol):
    """The cached steps of one run; see the top of this file for the order of calls."""

    wants_layers: bool
    wants_confidence: bool

    def begin(self) -> None:
        """Begin a block: nothing of the block before may be used."""

    def after_full(self, feed: Feed, layers: Sequence[Tensor]) -> None:
        """Take what a full forward says of the feed's tokens."""

    def __call__(self, feed: Feed) -> Passed:
        """Compute one cached step; writes the feed's columns of `feed.slots`, all or some of them."""


@runtime_checkable
class SkipPolicy(Protocol):
    """Settings of a skip; frozen, without state."""

    def start(self, parts: Parts) -> BlockForward:
        """Begin a run."""


class AllTokens:
    """Every token of the feed through every layer: what a step does without a skip policy."""

    wants_layers = False
    wants_confidence = False

    def __init__(self, parts: Parts) -> None:
        """Use the pieces of one model."""
        self._parts = parts

    def begin(self) -> None:
        """Nothing is kept between steps."""

    def after_full(self, feed: Feed, layers: Sequence[Tensor]) -> None:
        """Nothing is kept between steps."""

    def __call__(self, feed: Feed) -> Passed:
        """Compute all tokens."""
        return Passed(hidden=run_layers(self._parts, feed))


def run_layers(parts: Parts, feed: Feed) -> Tensor:
    """Hidden states `[rows, tokens, width]` behind the last layer, every token computed and written to its slot."""
    if feed.slots is not None:
        feed.slots.at = feed.columns
    hidden = parts.embed(feed.ids)
    for index in range(parts.num_layers):
        if feed.layers is not None:
            feed.layers.append(hidden)
        hidden = parts.layer(index, hidden, feed.rotary, feed.mask, feed.slots)
    if feed.layers is not None:
        feed.layers.append(hidden)
    return hidden
