"""A free run that keeps keys and values: the prompt once, then one token a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from twinrun.runners.cached import CachedForward
from twinrun.runners.forward import forward

if TYPE_CHECKING:
    from twinrun.runners.kvcache import KVCache


class CachedDecoding:
    """A free run with a cache."""

    def __init__(self, runner: KVCache, rows: list[list[int]], new_tokens: int) -> None:
        """Nothing runs before the first call of `logits`."""
        self._runner, self._rows, self._new_tokens = runner, rows, new_tokens
        self._state: CachedForward | None = None
        self._pending: list[int] = []
        self._under_way = list(range(len(rows)))

    def logits(self) -> Tensor:
        """The prompt's forward the first time, one of one token a row later."""
        if self._state is None:
            last_logits = partial(forward, self._runner.model)
            self._state = CachedForward(self._runner, last_logits, self._rows, self._new_tokens)
        elif self._pending:
            self._state.advance(self._pending)
            self._pending = []
        found = self._state.features
        if len(self._under_way) == len(self._rows):
            return found
        every = found.new_zeros(len(self._rows), found.shape[-1])
        every[self._under_way] = found
        return every

    def commit(self, tokens: list[int]) -> None:
        """Feed these at the next call of `logits`."""
        self._pending = [tokens[row] for row in self._under_way]

    def retire(self, ended: Sequence[object]) -> None:
        """Leave out rows that have ended, once a quarter of those under way has; their logits are zeros then."""
        left = [at for at, row in enumerate(self._under_way) if not ended[row]]
        if self._state is None or not self._runner.drop_finished or 4 * len(left) > 3 * len(self._under_way):
            return
        self._state.keep(left)
        self._under_way = [self._under_way[at] for at in left]

    def cache_lengths(self) -> tuple[int, ...]:
        """Cached positions a layer."""
        return self._state.cache_lengths() if self._state is not None else ()

    def settings(self) -> dict[str, Any]:
        """What the record of a run says about a fast step."""
        return self._state.step_settings() if self._state is not None else {}
