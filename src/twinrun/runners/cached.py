"""Prompts and their cache under way: fed token by token or several at once, taken back, fed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twinrun.errors import ConfigError, ShapeError
from twinrun.runners.captured import CapturedStep
from twinrun.runners.forward import Padded, Reader, cache_lengths
from twinrun.runners.ring import RollingCache
from twinrun.runners.rollback import roll_back

if TYPE_CHECKING:
    from twinrun.runners.kvcache import KVCache


class CachedForward:
    """Prompt and cache of one batch, advanced token by token. `features` `[rows, width]` are those of the newest token.

    `read` is what turns ids into features: a `Reader` when a text is scored, the bare forward when one is
    generated.
    """

    def __init__(
        self, runner: KVCache, read: Callable[..., Tensor], prompts: list[list[int]], num_steps: int
    ) -> None:
        """Run the prompts, or what of them no kept cache holds already (`reused` tokens)."""
        self._runner, self._read = runner, runner.stepped(read)
        batch = Padded.of(prompts, runner.model.pad_id, runner.model.device)
        self.tokens = [list(prompt) for prompt in prompts]
        """Tokens of each row that the cache holds."""
        self.mask = batch.mask
        self.cache, self.reused = runner.begin(
            self.tokens, batch.ids.shape[1] + num_steps, read.routes if isinstance(read, Reader) else None
        )
        positions = batch.positions[:, self.reused :]
        self._lengths = batch.positions[:, -1:] + 1
        self._behind = 0
        self._one_id = batch.ids.new_zeros(1, 1)
        self._is_static_fast = isinstance(self._read, CapturedStep) and not isinstance(
            self.cache, RollingCache
        )
        self._is_whole = True
        try:
            self.features = self._forward(batch.ids[:, self.reused :], positions)[:, -1].clone()
        except RuntimeError as error:
            raise runner.refusal(error) from error

    def _catch_up(self) -> None:
        """Count steps in `_lengths` that were taken without it."""
        self._lengths = self._lengths + self._behind
        self._behind = 0

    def step_settings(self) -> dict[str, Any]:
        """What a record says about a fast step; empty for the model's own forward."""
        return self._read.settings() if isinstance(self._read, CapturedStep) else {}

    def cache_lengths(self) -> tuple[int, ...]:
        """Tokens seen by each layer, padding counted."""
        found = self._read.cache_lengths(self.cache) if isinstance(self._read, CapturedStep) else None
        return cache_lengths(self.cache) if found is None else found

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        mask: Any = self.mask
        placed = positions if mask is not None else None
        if isinstance(self.cache, RollingCache):
            mask, placed = self.cache.handed(mask, positions, ids.shape[1])
        return self._run(ids, mask, placed)

    def _run(self, ids: Tensor, mask: Any, placed: Tensor | None) -> Tensor:
        self._is_whole, was_whole = False, self._is_whole
        if not was_whole:
            raise ConfigError(
                "an earlier forward of this run failed and left half of it in the cache; start again"
            )
        out = self._read(ids, mask=mask, positions=placed, cache=self.cache)
        self._is_whole = True
        return out

    def advance(self, tokens: list[int]) -> None:
        """One forward of one token a row, at each row's own next position."""
        if self.mask is not None or not self._is_static_fast:
            self.advance_by([[token] for token in tokens])
            return
        # Small models take under a millisecond a step, so nothing is computed here that the step does not need.
        if len(tokens) == 1:
            ids = self._one_id.fill_(tokens[0])
        else:
            ids = torch.tensor([[token] for token in tokens], device=self._lengths.device)
        self.features = self._run(ids, None, None).select(1, -1)
        self._behind += 1
        for row, token in zip(self.tokens, tokens, strict=True):
            row.append(token)

    def advance_by(self, rows: list[list[int]]) -> Tensor:
        """One forward of as many tokens for every row; returns the features of all of them, `[rows, tokens, width]`.

        Raises:
            ShapeError: rows of unequal length, or another number of rows than there are prompts.
        """
        count = len(rows[0]) if rows else 0
        if len(rows) != len(self.tokens) or count < 1 or any(len(row) != count for row in rows):
            raise ShapeError(
                f"{len(self.tokens)} rows are under way and {[len(r) for r in rows]} tokens were given; "
                "give every row as many, at least one"
            )
        self._catch_up()
        ids = torch.tensor(rows, device=self._lengths.device)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), count)], dim=1)
        steps = torch.arange(count, device=ids.device)
        out = self._forward(ids, self._lengths + steps)
        self.features = out[:, -1].clone()
        self._lengths = self._lengths + count
        for row, new in zip(self.tokens, rows, strict=True):
            row.extend(new)
        return out

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only; what the cache held of the others is let go."""
        self._catch_up()
        at = torch.tensor(rows, device=self._lengths.device)
        self.cache.batch_select_indices(at)
        self.mask = None if self.mask is None else self.mask[at]
        self._lengths, self.features = self._lengths[at], self.features[at]
        self.tokens = [self.tokens[row] for row in rows]

    def take_back(self, count: int) -> None:
        """Take back the newest `count` tokens of every row; the next forward goes on as if they had never been.

        Raises:
            ConfigError: fewer tokens are there, or this cache cannot (it has overwritten or rounded them).
        """
        shortest = min(map(len, self.tokens))
        if not 0 <= count < shortest:
            raise ConfigError(f"{count} tokens to take back of {shortest}; give 0 to {shortest - 1}")
        roll_back(self.cache, count)
        if count == 0:
            return
        self._catch_up()
        if self.mask is not None:
            self.mask = self.mask[:, :-count]
        self._lengths = self._lengths - count
        for row in self.tokens:
            del row[-count:]
