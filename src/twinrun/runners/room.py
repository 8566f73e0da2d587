"""Memory of a cache: keys and values of all layers in one block where they have one form."""

from __future__ import annotations

from torch import Tensor


class Room:
    """Hands out equal parts of one block; a part of another form than the first gets memory of its own."""

    def __init__(self, parts: int) -> None:
        """Nothing is allocated before the first part is asked for."""
        self._parts = parts
        self._block: Tensor | None = None

    def part(self, number: int, like: Tensor, slots: int) -> Tensor:
        """Return zeros `[rows, heads, slots, head_dim]` to store what is `like`, `[rows, heads, tokens, head_dim]`."""
        form = (*like.shape[:2], slots, like.shape[-1])
        block = self._block
        if block is None:
            block = self._block = like.new_zeros(self._parts, *form)
        is_equal = block.shape[1:] == form and block.dtype == like.dtype and block.device == like.device
        return block[number] if is_equal else like.new_zeros(form)
