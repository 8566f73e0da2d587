"""Delayed caching: inside a block, a token's keys and values are kept from the step after it was decided."""

from __future__ import annotations

from dataclasses import dataclass

from twinrun.diffusion.active import Active
from twinrun.diffusion.feed import Feed
from twinrun.diffusion.forward import AllTokens, BlockForward, Passed
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


class _Delayed(AllTokens):
    """The cached steps of one run; nothing is kept between them but what stands in the slots."""

    def __call__(self, feed: Feed) -> Passed:
        """Compute the tokens that are needed, the rows of the batch side by side."""
        assert feed.slots is not None
        needed = feed.open | feed.changed
        if feed.lead:  # the row before an open position holds its logits
            needed[:, :-1] |= feed.open[:, 1:]
        needed &= feed.active[:, None]
        rows, tokens = needed.shape
        counts = needed.sum(1)
        going, _ = Active.everything(rows, tokens, needed.device).narrow(needed, int(counts.max()))
        feed.slots.at = going.slots(feed.columns.start, feed.slots.nowhere)
        parts, hidden = self._parts, self._parts.embed(going.take(feed.ids))
        rotary = going.take(feed.rotary[0]), going.take(feed.rotary[1])
        for index in range(parts.num_layers):
            hidden = parts.layer(index, hidden, rotary, feed.mask, feed.slots)
        out = hidden.new_zeros(rows, tokens, hidden.shape[-1])
        going.put(out, hidden)
        return Passed(
            hidden=out,
            fresh=needed,
            token_layers=int(counts.sum()) * parts.num_layers,
            notes={"computed": needed},
        )
