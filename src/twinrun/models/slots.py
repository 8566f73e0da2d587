"""Keys and values of a canvas, written at any of its positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

At = slice | Tensor
"""Slots to write: a slice for all rows alike, or `[rows, tokens]` int64."""


class Slots:
    """Keys and values of a canvas, one slot a position, in every layer; a position computed again is written over.

    Keys are stored rotated, once, by the position that their token has: a slot never needs to know its own index.
    One slot more than asked for takes what is to be written nowhere (`Slots.nowhere`), so that rows with unequal
    numbers of tokens can be computed together.

    Attributes:
        width: slots that are attended to.
    """

    def __init__(self, width: int) -> None:
        """Room for `width` positions; memory is taken at the first write of each layer."""
        self.width = width
        self.at = slice(0, width)
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def at(self) -> At:
        """Where the next `update` writes."""
        return self._at

    @at.setter
    def at(self, where: At) -> None:
        self._at = where
        if isinstance(where, slice):
            return
        rows = where.shape[0]
        if rows > 1:
            where = where + torch.arange(rows, device=where.device)[:, None] * (self.width + 1)
        self._flat = where.flatten()

    @property
    def nowhere(self) -> int:
        """Index of the slot that is never read."""
        return self.width

    @property
    def layers(self) -> int:
        """Layers that have been written."""
        return len(self._stores)

    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(t.nbytes for pair in self._stores.values() for t in pair)

    def keys(self, layer: int) -> Tensor:
        """`[rows, kv_heads, width, head_dim]`, a view."""
        return self._views[layer][0]

    def values(self, layer: int) -> Tensor:
        """`[rows, kv_heads, width, head_dim]`, a view."""
        return self._views[layer][1]

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[rows, kv_heads, tokens, head_dim]` at `at`; return what a query attends to. Attention calls this."""
        # Keys of a model that is rotated in float32 come wider than its precision; attention rounds them to it.
        both = keys.to(values.dtype), values
        if layer_idx not in self._stores:
            rows, heads, _tokens, dim = values.shape
            room = (rows, self.width + 1, heads, dim)  # slot by slot, so that a token is written in one piece
            self._keep(layer_idx, values.new_zeros(room), values.new_zeros(room))
        for store, new in zip(self._stores[layer_idx], both, strict=True):
            self._write(store, new.transpose(1, 2))
        return self._views[layer_idx]

    def _keep(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self._stores[layer] = keys, values
        seen_keys, seen_values = (part.narrow(1, 0, self.width).transpose(1, 2) for part in (keys, values))
        self._views[layer] = seen_keys, seen_values

    def _write(self, store: Tensor, new: Tensor) -> None:
        """Write `[rows, tokens, kv_heads, head_dim]`."""
        if isinstance(self._at, slice):
            store.narrow(1, self._at.start, self._at.stop - self._at.start).copy_(new)
        else:
            store.flatten(0, 1).index_copy_(0, self._flat, new.flatten(0, 1))

    def copy(self) -> Slots:
        """Return the same numbers in memory of their own."""
        twin = Slots(self.width)
        for layer, (keys, values) in self._stores.items():
            twin._keep(layer, keys.clone(), values.clone())
        return twin
