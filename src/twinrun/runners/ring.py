"""The rolling cache: a ring of W slots, allocated once. A new key overwrites slot t % W; nothing is shifted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, CacheLayerMixin  # type: ignore[attr-defined]  # its stub leaves the second out

from twinrun.errors import ConfigError
from twinrun.runners.room import Room
from twinrun.runners.window import Window


class RingLayer(CacheLayerMixin):  # type: ignore[misc]  # its stub says Any
    """Keys and values of one layer, the token with index t in slot t % `slots`.

    Source: the rolling buffer cache of Mistral 7B (Jiang et al. 2023, arXiv:2310.06825, section 2).

    Args:
        window: tokens that a query may see, itself included; None for all of them.
        length: tokens that will be fed in all; a shorter text needs fewer slots than the window has.
        is_sliding: whether the model's own code masks this layer as sliding (transformers picks masks by that).
        room: memory shared with the other layers, in which this is layer `number`; None is memory of its own.

    Cost: one write of one token a step, in place; a forward of several tokens behind the first joins the ring and
    them, in order, once.
    """

    is_croppable = False

    def __init__(
        self,
        window: int | None,
        length: int,
        *,
        is_sliding: bool = False,
        room: Room | None = None,
        number: int = 0,
    ) -> None:
        super().__init__()
        self._room, self._number = room or Room(2), number if room else 0
        self.window, self.slots = window, length if window is None else min(window, length)
        self.is_sliding = is_sliding
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate all slots, `[rows, heads, slots, head_dim]`, in the precision and place of what is stored."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            self._room.part(2 * self._number + i, states, self.slots)
            for i, states in enumerate((key_states, value_states))
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store `[rows, heads, tokens, head_dim]` and return what the new queries attend to.

        One token: the filled slots, in ring order (attention does not ask for an order). Several: the tokens that the
        first of them still sees, then themselves, in order of the text.

        Raises:
            ConfigError: more tokens than there is room for, in a layer that must keep all.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        if self.slots != self.window and self.seen + count > self.slots:
            raise ConfigError(
                f"the cache has room for {self.slots} tokens and was fed {self.seen + count}; ask for more room"
            )
        if count == 1:
            self._write(key_states, value_states)
            filled = min(self.seen, self.slots)
            return self.keys[:, :, :filled], self.values[:, :, :filled]
        pairs = zip(self.in_order(self._before), (key_states, value_states), strict=True)
        keys, values = (new if not old.shape[-2] else torch.cat([old, new], dim=-2) for old, new in pairs)
        self._write(
            key_states, value_states
        )  # last: what was kept is a view of the slots that are written now
        return keys, values

    @property
    def _before(self) -> int:
        """Tokens kept that the next query still sees: itself takes one place of the window."""
        return self.seen if self.window is None else min(self.seen, self.window - 1)

    def in_order(self, count: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the newest `count` tokens in order of the text; a copy where the ring is cut."""
        first = (self.seen - count) % self.slots
        if first + count <= self.slots:
            return self.keys[:, :, first : first + count], self.values[:, :, first : first + count]
        at = torch.arange(first, first + count, device=self.device) % self.slots
        return self.keys.index_select(2, at), self.values.index_select(2, at)

    def _write(self, keys: Tensor, values: Tensor) -> None:
        count = keys.shape[-2]
        self.seen += count
        kept = min(count, self.slots)
        slot = (self.seen - kept) % self.slots
        head = min(kept, self.slots - slot)
        for store, new in ((self.keys, keys), (self.values, values)):
            store[:, :, slot : slot + head] = new[:, :, count - kept : count - kept + head]
            if head < kept:
                store[:, :, : kept - head] = new[:, :, count - kept + head :]

    def indices(self, count: int) -> Tensor:
        """Index in the text of each slot that `update` will return for the next `count` tokens, `[keys]`."""
        if count > 1:
            return torch.arange(self.seen - self._before, self.seen + count, device=self._place)
        slots = torch.arange(min(self.seen + 1, self.slots), device=self._place)
        return self.seen - (self.seen - slots) % self.slots

    @property
    def _place(self) -> torch.device:
        return self.device if self.is_initialized else torch.device("cpu")

    @property
    def has_wrapped(self) -> bool:
        """Whether a token has been overwritten: from then on nothing can be taken back."""
        return self.seen > self.slots

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens, given as a negative number; their slots are written again.

        Raises:
            ConfigError: the ring has wrapped, so what stood there before is gone.
        """
        if tokens_to_remove and self.has_wrapped:
            raise ConfigError(
                f"a ring of {self.slots} slots that was fed {self.seen} tokens has overwritten what a roll-back "
                "needs; use cache='dynamic'"
            )
        self.seen += tokens_to_remove

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys `update` will return for so many queries, and the index of the first in the text."""
        if query_length > 1:
            return self._before + query_length, self.seen - self._before
        length = min(self.seen + 1, self.slots)
        return length, self.seen + 1 - length

    def get_seq_length(self) -> int:
        """Return the tokens seen, overwritten ones included: the position of the next one."""
        return self.seen

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return self.slots

    def reset(self) -> None:
        """Start a new text; the memory stays."""
        self.seen = 0


class RollingCache(Cache):
    """A ring for each layer of one model under one window."""

    def __init__(self, window: Window, length: int) -> None:
        """Make empty rings for a text of `length` tokens a row."""
        pairs = list(zip(window.layers, window.own, strict=True))
        room = Room(2 * len(pairs)) if len(set(window.layers)) == 1 else None
        self.rings = [
            RingLayer(w, length, is_sliding=own is not None, room=room, number=number)
            for number, (w, own) in enumerate(pairs)
        ]
        super().__init__(layers=list(self.rings))
        self.window = window

    @property
    def seen(self) -> int:
        """Tokens fed so far, padding counted."""
        return self.rings[0].seen

    def handed(self, real: Tensor | None, positions: Tensor, width: int) -> tuple[Any, Tensor | None]:
        """Return mask and position ids for the next forward of `width` tokens; None where the model's own are right.

        Args:
            real: `[rows, seen + width]`, 0 for padding; None if nothing is padded.
            positions: `[rows, width]`, counted from 0 in each row, padding not counted.
            width: tokens of this forward.
        """
        window, end = self.window, self.seen + width
        rows = window.positions.rows if window.positions.kind == "learned" else None
        placed = positions if rows is None else positions.clamp_max(rows - 1)
        given = placed if real is not None or (rows is not None and end > rows) else None
        slides = end > window.smallest
        if not slides or (width > 1 and window.is_own) or (width == 1 and real is None):
            return real, given
        queries = torch.arange(self.seen, end, device=positions.device)
        keys = {layer.window: layer.indices(width).to(positions.device) for layer in self.rings}
        return window.mask(queries, keys, real), placed
