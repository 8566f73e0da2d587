"""A static cache of which only the filled slots are attended: no mask over empty slots, nothing is copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, CacheLayerMixin  # type: ignore[attr-defined]  # its stub leaves the second out

from twinrun.errors import ConfigError
from twinrun.runners.room import Room


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # its stub says Any
    """Keys and values of one layer, the token with index t in slot t. `update` returns views of the filled slots."""

    is_croppable = True

    def __init__(self, slots: int, room: Room, number: int) -> None:
        super().__init__()
        self.slots, self.seen = slots, 0
        self._room, self._number = room, number

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
        """Store `[rows, heads, tokens, head_dim]` behind what is there; return all that is filled.

        Raises:
            ConfigError: more tokens than there is room for.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self.seen, self.seen + key_states.shape[-2]
        if end > self.slots:
            raise ConfigError(
                f"the cache has room for {self.slots} tokens and was fed {end}; ask for more room"
            )
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        self.seen = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys `update` will return for so many queries, and the index of the first."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Return the tokens seen."""
        return self.seen

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return self.slots

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens, given as a negative number; their slots are written again."""
        self.seen += tokens_to_remove

    def reset(self) -> None:
        """Start a new text; the memory stays."""
        self.seen = 0


def slot_cache(num_layers: int, slots: int) -> Any:
    """Return an empty cache of `num_layers` layers with `slots` slots each."""
    room = Room(2 * num_layers)
    return Cache(layers=[SlotLayer(slots, room, number) for number in range(num_layers)])
