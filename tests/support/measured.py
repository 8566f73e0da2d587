"""Bytes that a built model really holds: the oracle of the planner. Nothing of twinrun's planner is used here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, QuantizedCache, StaticCache

from twinrun.bench.memory import peak_extra_bytes


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, shared ones once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def weights(module: Any) -> int:
    """Parameters and buffers."""
    return storage_bytes([*module.parameters(), *module.buffers()])


def new_cache(config: Any, kind: str, length: int) -> Any:
    """transformers' own."""
    if kind == "quantized":
        return QuantizedCache("fp8", config)
    return (
        DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=length)
    )


def request(module: Any, ids: Tensor, kind: str, new_tokens: int) -> Any:
    """Prompt and new tokens by the model's plain forward; returns the cache."""
    cache = new_cache(module.config.get_text_config(decoder=True), kind, ids.shape[1] + new_tokens)
    with torch.inference_mode():
        out = module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(new_tokens):
            token = out.logits[:, -1:].float().argmax(-1)
            out = module(input_ids=token, past_key_values=cache, use_cache=True)
    return cache


def cache(module: Any, ids: Tensor, kind: str, new_tokens: int) -> int:
    """Bytes of a cache after a request."""
    held = request(module, ids, kind, new_tokens)
    if kind == "quantized":
        return storage_bytes(
            part[0] for layer in held.layers for part in (layer._quantized_keys, layer._quantized_values)
        )
    return storage_bytes(t for layer in held.layers for t in (layer.keys, layer.values))


def peak(module: Any, ids: Tensor, kind: str, new_tokens: int) -> int:
    """Most bytes of tensors during a request, above the weights."""
    request(module, ids, kind, new_tokens)
    return peak_extra_bytes(lambda: request(module, ids, kind, new_tokens))


def whole_prompt(module: Any, ids: Tensor, *, upcast: bool) -> int:
    """Most bytes during one plain forward with every row of logits, and with their float32 copy."""

    def forward() -> object:
        cache = new_cache(module.config.get_text_config(decoder=True), "dynamic", 0)
        with torch.inference_mode():
            logits = module(input_ids=ids, past_key_values=cache, use_cache=True).logits
            return cache, logits, logits.float() if upcast else None

    forward()
    return peak_extra_bytes(forward)
