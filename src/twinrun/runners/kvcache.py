"""Keep keys and values: one forward over the prompt, then one forward of one token a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from twinrun.errors import ConfigError, UnsupportedModelError, near_names
from twinrun.models.model import Model
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.records.scores import Scores
from twinrun.runners.forward import Padded, Reader, TailMismatch, cache_lengths, forward, reading
from twinrun.runners.runner import ModelRunner

CACHES: dict[str, Callable[[Any, int], Any]] = {
    "dynamic": lambda config, _length: DynamicCache(config=config),
    "static": lambda config, length: StaticCache(config=config, max_cache_len=length),
}
"""Factories by name: (text config, tokens to hold) -> a transformers cache."""


class KVCache(ModelRunner):
    """Run the prompt once, then one token a forward with transformers' own cache classes.

    Args:
        model: what `twinrun.load` returns.
        cache: "dynamic" grows with the text; "static" is allocated once for prompt plus new tokens.
        logits: rows that `score` keeps, and the precision of their softmax; None is all, streamed in float32.

    Raises:
        ConfigError: unknown cache kind.

    Cost: one forward of `start` tokens and `len(row) - start` forwards of one token a batch.

    Example:
        >>> m = load("builtin:amateur")
        >>> KVCache(m, cache="static").score([5, 6, 7], start=2).cache_lengths[:2]
        (3, 3)
    """

    kind = "kv-cache"

    def __init__(self, model: Model, cache: str = "dynamic", logits: LogitsPolicy | None = None) -> None:
        """Choose the cache kind."""
        super().__init__(model, logits)
        if cache not in CACHES:
            raise ConfigError(
                f"no cache kind {cache!r}; choose from {', '.join(CACHES)}.{near_names(cache, CACHES)}"
            )
        self.cache = cache

    @property
    def name(self) -> str:
        """How records call this runner."""
        return f"{self.kind}:{self.cache}"

    def new_cache(self, length: int) -> Any:
        """Return an empty cache for `length` tokens a row."""
        return CACHES[self.cache](self.model.config, length)

    def refusal(self, error: RuntimeError) -> Exception:
        """Say that this model's code cannot work with this kind of cache; memory errors stay what they are."""
        if self.cache == "dynamic" or isinstance(error, torch.OutOfMemoryError):
            return error
        family = type(self.model.core).__name__
        why = " ".join(str(error).split())[:120]
        return UnsupportedModelError(
            f"{family} does not run with a {self.cache} cache ({why}); use cache='dynamic'"
        )

    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        try:
            return self._score_once(rows, starts, stream=True)
        except TailMismatch:
            return self._score_once(rows, starts, stream=False)

    def _score_once(self, rows: list[list[int]], starts: list[int], *, stream: bool) -> list[Scores]:
        began = time.perf_counter()
        num_steps = max(len(row) - start for row, start in zip(rows, starts, strict=True))
        with reading(self.model, stream=stream) as read:
            state = CachedForward(
                self, read, [row[:s] for row, s in zip(rows, starts, strict=True)], num_steps
            )
            columns = [state.features]
            for step in range(num_steps):
                at = [start + step for start in starts]
                tokens = [
                    row[i] if i < len(row) else self.model.pad_id for row, i in zip(rows, at, strict=True)
                ]
                state.advance(tokens)
                columns.append(state.features)
            read.check()
            features = torch.stack(columns, dim=1)
            seconds = (time.perf_counter() - began) / len(rows)
            scores = []
            for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
                count = len(row) - start + 1
                routes = _routes_of(read, i, len(row), count, num_steps)
                scores.append(read.scores(row, start, features[i, :count], seconds, routes, state.cache))
            return scores

    def start(self, rows: list[list[int]], new_tokens: int) -> CachedDecoding:
        """Begin a free run."""
        return CachedDecoding(self, rows, new_tokens)


class CachedForward:
    """Prompt and cache of one batch, advanced token by token. `features` `[rows, width]` are those of the newest token.

    `read` is what turns ids into features: a `Reader` when a text is scored, the bare forward when one is
    generated.
    """

    def __init__(
        self, runner: KVCache, read: Callable[..., Tensor], prompts: list[list[int]], num_steps: int
    ) -> None:
        """Run the prompts."""
        self._read = read
        self._batch = Padded.of(prompts, runner.model.pad_id, runner.model.device)
        self._lengths = torch.tensor([[len(p)] for p in prompts], device=runner.model.device)
        self.cache = runner.new_cache(self._batch.ids.shape[1] + num_steps)
        self.mask = self._batch.mask
        try:
            out = read(self._batch.ids, mask=self.mask, positions=self._batch.positions, cache=self.cache)
        except RuntimeError as error:
            raise runner.refusal(error) from error
        self.features = out[:, -1].clone()

    def advance(self, tokens: list[int]) -> None:
        """One forward of one token a row, at each row's own next position."""
        ids = torch.tensor(tokens, device=self._batch.ids.device)[:, None]
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.features = self._read(ids, mask=self.mask, positions=self._lengths, cache=self.cache)[
            :, -1
        ].clone()
        self._lengths = self._lengths + 1


def _routes_of(read: Reader, row: int, length: int, count: int, num_steps: int) -> Any:
    """Routes of one row; steps after its end (other rows were longer) are cut off."""
    surplus = num_steps - (count - 1)
    routes = read.routes
    whole = routes.forwards
    routes.forwards = whole[: len(whole) - surplus]
    found = routes.of_row(row, length, count)
    routes.forwards = whole
    return found


class CachedDecoding:
    """A free run with a cache."""

    def __init__(self, runner: KVCache, rows: list[list[int]], new_tokens: int) -> None:
        """Nothing runs before the first call of `logits`."""
        self._runner, self._rows, self._new_tokens = runner, rows, new_tokens
        self._state: CachedForward | None = None
        self._pending: list[int] = []

    def logits(self) -> Tensor:
        """The prompt's forward the first time, one of one token a row later."""
        if self._state is None:
            last_logits = partial(forward, self._runner.model)
            self._state = CachedForward(self._runner, last_logits, self._rows, self._new_tokens)
        elif self._pending:
            self._state.advance(self._pending)
            self._pending = []
        return self._state.features

    def commit(self, tokens: list[int]) -> None:
        """Feed these at the next call of `logits`."""
        self._pending = tokens

    def cache_lengths(self) -> tuple[int, ...]:
        """Cached positions a layer."""
        return cache_lengths(self._state.cache) if self._state is not None else ()
