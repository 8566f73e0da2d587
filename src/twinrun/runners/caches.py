"""The kinds of KV cache by name: what each is for, whether it is exact, and how an empty one is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache, StaticCache

from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model

Build = Callable[[Model, int, Any], Any]
"""(model, tokens to hold, settings of the kind) -> an empty transformers cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """The settings of a kind that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """One kind of cache.

    Attributes:
        build: makes an empty cache.
        summary: what it is, for `twinrun runners`.
        limits: what it costs or cannot do, in one sentence.
        is_exact: whether its scores equal recomputing up to rounding.
        options: frozen dataclass of its settings.
    """

    build: Build
    summary: str
    limits: str
    is_exact: bool = True
    options: type = NoOptions


CACHES: dict[str, CacheKind] = {
    "dynamic": CacheKind(
        build=lambda model, _length, _options: DynamicCache(config=model.config),
        summary="keys and values kept, a cache that grows",
        limits="memory grows with the text",
    ),
    "static": CacheKind(
        build=lambda model, length, _options: StaticCache(config=model.config, max_cache_len=length),
        summary="keys and values kept, a cache allocated once",
        limits="room for the whole text from the first token on",
    ),
}


def cache_kind(name: str) -> CacheKind:
    """Return the kind called `name`.

    Raises:
        ConfigError: no such kind; names near ones.
    """
    if name not in CACHES:
        raise ConfigError(
            f"no cache kind {name!r}; choose from {', '.join(CACHES)}.{near_names(name, CACHES)}"
        )
    return CACHES[name]
