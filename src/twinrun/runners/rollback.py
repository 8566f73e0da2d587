"""Take tokens back out of a transformers cache, or say why that cache cannot."""

from __future__ import annotations

from typing import Any

from transformers import DynamicLayer, StaticLayer, StaticSlidingWindowLayer

from twinrun.errors import ConfigError
from twinrun.runners.ring import RingLayer


def roll_back(cache: Any, count: int) -> None:
    """Take the newest `count` tokens out of every layer.

    All layers are asked before any is changed.

    Raises:
        ConfigError: a layer that has overwritten, dropped or rounded what was there before.
    """
    if count == 0:
        return
    for layer in cache.layers:
        reason = why_not(layer)
        if reason is not None:
            raise ConfigError(f"this cache cannot take tokens back: {reason}; use cache='dynamic'")
    for layer in cache.layers:
        if isinstance(layer, StaticLayer):
            layer.cumulative_length.sub_(count)  # what lies behind is masked, and written over
            if isinstance(layer, StaticSlidingWindowLayer):
                layer.cumulative_length_int -= count
        else:
            layer.crop(-count)


def why_not(layer: Any) -> str | None:
    """Return None if tokens can be taken back out of a layer now, else the reason."""
    seen, sliding = int(layer.get_seq_length()), getattr(layer, "is_sliding", False)
    if isinstance(layer, RingLayer):
        return (
            f"a ring of {layer.slots} slots was fed {seen} tokens and has wrapped"
            if layer.has_wrapped
            else None
        )
    if hasattr(layer, "_quantized_keys"):
        return "quantised keys were rounded together with those that would stay"
    if isinstance(layer, StaticLayer):
        full = sliding and seen > layer.max_cache_len
        return f"a window of {layer.max_cache_len} was fed {seen} tokens" if full else None
    if isinstance(layer, DynamicLayer) and sliding:
        window = int(layer.get_max_length())
        return f"a window of {window} was fed {seen} tokens" if seen >= window else None
    return None if type(layer) is DynamicLayer else f"{type(layer).__name__} keeps a state that cannot be cut"
