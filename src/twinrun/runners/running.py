"""A cached run in the hands of the caller: feed tokens, read their logits, take tokens back, go on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.runners.cached import CachedForward
from twinrun.runners.forward import cache_lengths, forward

if TYPE_CHECKING:
    from twinrun.runners.kvcache import KVCache


class Running:
    """Texts under way, one or several, with one cache. `KVCache.open` makes one.

    Feed drafted tokens, look at the logits, take back what is rejected, go on: scores are those of the text that is
    left, as if the rest had never been fed.

    Attributes:
        logits: `[rows, vocab]` behind the last token that was fed; after `roll_back` they still are those.
    """

    def __init__(self, runner: KVCache, prompts: list[list[int]], room: int) -> None:
        """Run the prompts; `room` tokens a row may follow."""
        self._room, self._most = room, max(map(len, prompts)) + room
        with torch.inference_mode():
            self._state = CachedForward(runner, partial(forward, runner.model, last=False), prompts, room)
        self.logits: Tensor = self._state.features

    @property
    def tokens(self) -> list[list[int]]:
        """Token ids of each row that the cache holds."""
        return [list(row) for row in self._state.tokens]

    @property
    def reused(self) -> int:
        """Tokens of the prompt that came from a kept cache."""
        return self._state.reused

    @property
    def cache_lengths(self) -> tuple[int, ...]:
        """Tokens seen by each layer, padding counted."""
        return cache_lengths(self._state.cache)

    def feed(self, rows: list[list[int]]) -> Tensor:
        """Feed as many tokens to every row in one forward.

        Returns:
            `[rows, tokens, vocab]`: entry `[i, j]` predicts what follows token j of row i.

        Raises:
            ShapeError: rows of unequal length.
            ConfigError: more tokens than there is room for.
        """
        if rows and max(map(len, self._state.tokens)) + len(rows[0]) > self._most:
            raise ConfigError(
                f"no room for {len(rows[0])} more tokens; open the run with more than room={self._room}"
            )
        with torch.inference_mode():
            logits = self._state.advance_by(rows)
        self.logits = self._state.features
        return logits

    def roll_back(self, count: int) -> None:
        """Take back the newest `count` tokens of every row.

        Raises:
            ConfigError: more than there are, or a cache that cannot: a window that is full, a quantised one.
        """
        with torch.inference_mode():
            self._state.take_back(count)
