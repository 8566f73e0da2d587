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

import torch
from torch import Tensor

from twinrun.diffusion.feed import Feed
from twinrun.models.parts import Parts, Slots


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
    """Hidden states `[rows, tokens, width]` behind the last layer, every token written to its slots.

    Behind the last layer only `feed.rows`, the rows with the block's logits, are computed and the others are zero,
    unless `feed.layers` asks for all: of the last layer the others are needed for their keys and values alone.
    """
    if feed.slots is not None:
        feed.slots.at = feed.columns
    hidden = parts.embed(feed.ids)
    last = parts.num_layers - 1
    for index in range(last):
        if feed.layers is not None:
            feed.layers.append(hidden)
        hidden = parts.layer(index, hidden, feed.rotary, feed.mask, feed.slots)
    out = _last_layer(parts, feed, hidden)
    if feed.layers is not None:
        feed.layers.extend((hidden, out))
    return out


def _last_layer(parts: Parts, feed: Feed, hidden: Tensor) -> Tensor:
    """The last layer on the rows with logits; the same numbers for them whether all rows are asked for or not."""
    last, rows, columns = parts.num_layers - 1, feed.rows, feed.columns
    if rows.stop - rows.start + feed.lead >= hidden.shape[1]:
        return parts.layer(last, hidden, feed.rotary, feed.mask, feed.slots)
    slots = feed.slots or Slots(feed.canvas.width)
    slots.at = columns
    known = parts.write(last, hidden, feed.rotary, slots)
    if feed.layers is None and known:
        out = torch.zeros_like(hidden)
    else:
        out = parts.layer(last, hidden, feed.rotary, feed.mask, slots)
    if not known:
        return out
    slots.at = slice(columns.start + rows.start, columns.start + rows.stop)
    cos, sin = feed.rotary
    out[:, rows] = parts.layer(last, hidden[:, rows], (cos[:, rows], sin[:, rows]), feed.mask, slots)
    return out
