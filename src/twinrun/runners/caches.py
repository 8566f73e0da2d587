"""The kinds of KV cache by name: what each is for, whether it is exact, its settings, and how an empty one is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import DynamicCache, StaticCache

from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model
from twinrun.models.positions import layer_windows
from twinrun.runners.quantized import QuantizedOptions, quantized_cache
from twinrun.runners.ring import RollingCache
from twinrun.runners.window import Window


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes empty caches for one model: `make(length)` for `length` tokens a row, `max_context` its longest text."""

    make: Callable[[int], Any]
    max_context: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """The settings of a kind that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingOptions:
    """Settings of the rolling cache."""

    window: int | None = field(
        default=None,
        metadata={"help": "tokens kept; None is the model's own window, or its table of positions"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixOptions:
    """Settings of prefix reuse."""

    entries: int = field(default=4, metadata={"help": "texts whose caches are kept, the latest ones"})

    def __post_init__(self) -> None:
        """Check the range."""
        if self.entries < 1:
            raise ConfigError(f"entries must be at least 1 kept text, got {self.entries}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """One kind of cache.

    Attributes:
        prepare: (model, settings) -> a `Maker`; refuses what cannot work before anything runs.
        summary: what it is, for `twinrun runners`.
        limits: what it costs or cannot do, in one sentence.
        is_exact: whether its scores equal the plain way's up to rounding.
        options: frozen dataclass of its settings.
    """

    prepare: Callable[[Model, Any], Maker]
    summary: str
    limits: str
    is_exact: bool = True
    options: type = NoOptions


def _dynamic(model: Model, _options: Any) -> Maker:
    return Maker(lambda _length: DynamicCache(config=model.config), model.max_context)


def _static(model: Model, _options: Any) -> Maker:
    return Maker(lambda n: StaticCache(config=model.config, max_cache_len=n), model.max_context)


def _sliding(model: Model, options: Any) -> Maker:
    if not any(layer_windows(model)):
        raise ConfigError(
            f"{model.name} has no sliding-window layer; use cache='dynamic', or cache='rolling' with window=TOKENS"
        )
    return _dynamic(model, options)


def _offloaded(model: Model, _options: Any) -> Maker:
    on_host = model.device.type == "cpu"
    return Maker(lambda _length: DynamicCache(config=model.config, offloading=not on_host), model.max_context)


def _prefix(model: Model, _options: Any) -> Maker:
    layer_windows(model)  # refuses layers whose state cannot be cut
    return Maker(lambda _length: DynamicCache(), model.max_context)


def _quantized(model: Model, options: QuantizedOptions) -> Maker:
    return Maker(quantized_cache(model, options), model.max_context)


def _rolling(model: Model, options: RollingOptions) -> Maker:
    window = Window.of(model, options.window, who="KVCache")
    return Maker(lambda length: RollingCache(window, length), window.max_context)


CACHES: dict[str, CacheKind] = {
    "dynamic": CacheKind(
        prepare=_dynamic,
        summary="keys and values kept, a cache that grows",
        limits="memory grows with the text, up to the window in layers that have one",
    ),
    "static": CacheKind(
        prepare=_static,
        summary="keys and values kept, a cache allocated once",
        limits="room for the whole text from the first token on",
    ),
    "sliding": CacheKind(
        prepare=_sliding,
        summary="layers with a window keep that much and no more (models with a window)",
        limits="refused for models without a window; no roll-back once the window is full",
    ),
    "rolling": CacheKind(
        prepare=_rolling,
        summary="a ring of slots allocated once, the oldest overwritten in place",
        limits="with learned positions it differs from recomputing by design once it slides",
        options=RollingOptions,
    ),
    "prefix": CacheKind(
        prepare=_prefix,
        summary="prompts that begin alike go on from a kept cache",
        limits="one row at a time; keeps all tokens of the last texts",
        options=PrefixOptions,
    ),
    "offloaded": CacheKind(
        prepare=_offloaded,
        summary="layers wait in host memory and are fetched one ahead (a GPU's memory is saved)",
        limits="slower by the transfers; on a CPU the cache is there already and nothing moves",
    ),
    "quantized": CacheKind(
        prepare=_quantized,
        summary="keys and values stored in 8, 4 or 2 bits",
        limits="lossy: give verify a budget; full attention only; no roll-back",
        is_exact=False,
        options=QuantizedOptions,
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


def parse_options(name: str, given: dict[str, Any]) -> Any:
    """Build the settings of the kind called `name`.

    Raises:
        ConfigError: a setting that this kind does not have, or one outside its range.
    """
    options = cache_kind(name).options
    known = [f.name for f in fields(options)]
    for each in given:
        if each not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"cache {name!r} has no setting {each!r}; {takes}.{near_names(each, known)}")
    return options(**given)
