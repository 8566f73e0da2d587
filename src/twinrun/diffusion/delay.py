"""Delayed caching: inside a block, a token's keys and values are kept from the step after it was decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinrun.diffusion.feed import Feed
from twinrun.diffusion.forward import BlockForward, Passed
from twinrun.models.parts import Parts


@dataclass(frozen=True, slots=True)
class DelayedCache:
    """Compute what is still open and what the step before decided; older decisions of the block are reused.

    A step of a block of n tokens computes fewer and fewer of them, half on average with one commit a step. The step
    behind a commit still computes it, because its keys and values were those of a mask until then.

    Source: Ma et al. 2025, "dKV-Cache", arXiv:2505.15781 (dKV-Cache-Decode; its `cache_reloading_step` is
    `refresh_every`).
    Differs from the published code: prompt and other blocks follow the dual cache, any batch works.
    """

    def start(self, parts: Parts) -> BlockForward:
        """Begin a run."""
        return _Delayed(parts)


class _Delayed:
    """The cached steps of one run; nothing is kept between them but what stands in the slots."""

    wants_layers = False
    wants_confidence = False

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def begin(self) -> None:
        """Nothing to forget."""

    def after_full(self, feed: Feed, layers: Sequence[Tensor]) -> None:
        """Nothing to take: the full forward has written all slots."""

    def __call__(self, feed: Feed) -> Passed:
        """Compute the tokens that are needed, the rows of the batch side by side."""
        assert feed.slots is not None
        needed = feed.open | feed.changed
        if feed.lead:  # the row before an open position holds its logits
            needed[:, :-1] |= feed.open[:, 1:]
        needed &= feed.active[:, None]
        counts = needed.sum(1)
        order = (~needed).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
        real = needed.gather(1, order)
        feed.slots.at = torch.where(real, order + feed.columns.start, feed.slots.nowhere)
        hidden = self._through(feed, order)
        out = hidden.new_zeros(*needed.shape, hidden.shape[-1])
        rows = real.nonzero(as_tuple=True)
        out[rows[0], order[rows]] = hidden[rows]
        return Passed(
            hidden=out,
            fresh=needed,
            token_layers=int(counts.sum()) * self._parts.num_layers,
            notes={"computed": needed},
        )

    def _through(self, feed: Feed, order: Tensor) -> Tensor:
        """Hidden states `[rows, tokens, width]` behind the last layer of the tokens in `order`."""
        parts = self._parts
        hidden = parts.embed(feed.ids.gather(1, order))
        at = order[..., None].expand(-1, -1, feed.rotary[0].shape[-1])
        rotary = (feed.rotary[0].gather(1, at), feed.rotary[1].gather(1, at))
        for index in range(parts.num_layers):
            hidden = parts.layer(index, hidden, rotary, feed.mask, feed.slots)
        return hidden
