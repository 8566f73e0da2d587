"""Faults of the cache: slots never written, slots that must not be read, values stored too coarsely."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults import sites
from twinrun.faults.fault import CACHED, Fault, Site
from twinrun.faults.parts import attentions, attribute, calls
from twinrun.faults.reasons import no_attention
from twinrun.runners.kvcache import KVCache
from twinrun.runners.runner import ModelRunner

Write = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]
"""(keys, values, layer, tokens already cached) -> what is stored instead."""


def slot_not_written() -> Fault:
    """One layer's cache keeps a slot for the first decoded token and never fills it."""
    return Fault(
        name="cache-slot-not-written",
        summary="the middle layer reserves a cache slot for the first decoded token and never writes it",
        thread=(
            "https://github.com/vllm-project/vllm/pull/37152",
            "https://github.com/GeeeekExplorer/nano-vllm/pull/213",
        ),
        kind="runner",
        where="cache of the middle layer, first decoding step",
        site=Site("cache", sites.middle_attention),
        needs=("cache", "steps after the prompt"),
        runners=CACHED,
        reason_against=no_attention,
        plant=_unwritten_slot,
    )


def float8_cache() -> Fault:
    """Keys and values pass through float8 without a scale."""
    return Fault(
        name="float8-cache",
        summary="keys and values are stored as float8 with scale 1, whatever their size",
        thread=(
            "https://github.com/sgl-project/sglang/issues/18818",
            "https://github.com/ROCm/vllm/pull/317",
        ),
        kind="runner",
        where="cache of every layer",
        site=Site("cache", sites.first_attention),
        needs=("cache",),
        runners=CACHED,
        reason_against=no_attention,
        plant=_through_float8,
    )


def static_cache_without_mask() -> Fault:
    """Decoding attends to slots of a static cache that hold nothing yet."""
    return Fault(
        name="static-cache-without-mask",
        summary="a decoding step attends to the zero-filled slots behind the newest token of a static cache",
        thread=(
            "https://github.com/huggingface/transformers/pull/30437",
            "https://github.com/unslothai/unsloth/issues/7428",
        ),
        kind="runner",
        where="attention mask of the first decoding step",
        site=Site("mask"),
        needs=("cache", "empty slots"),
        runners=("kv-cache:static",),
        reason_against=no_attention,
        plant=_empty_slots_attended,
    )


@contextmanager
def rewritten(runner: ModelRunner, write: Write) -> Iterator[None]:
    """Pass what every new cache stores through `write`."""
    assert isinstance(runner, KVCache)
    fresh = runner.new_cache

    def new_cache(length: int) -> Any:
        cache = fresh(length)
        store = cache.update

        def update(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            keys, values = write(keys, values, layer, int(cache.layers[layer].get_seq_length()))
            return store(keys, values, layer, *args, **kwargs)

        cache.update = update
        return cache

    with attribute(runner, "new_cache", new_cache):
        yield


@contextmanager
def _unwritten_slot(runner: ModelRunner) -> Iterator[None]:
    target = len(runner.model.layout.layers) // 2
    prompt: list[int] = []

    def write(keys: Tensor, values: Tensor, layer: int, past: int) -> tuple[Tensor, Tensor]:
        if layer != target:
            return keys, values
        if past == 0:
            prompt[:] = [keys.shape[-2]]
        is_first_step = past > 0 and past == prompt[0]
        return (torch.zeros_like(keys), torch.zeros_like(values)) if is_first_step else (keys, values)

    with rewritten(runner, write):
        yield


@contextmanager
def _through_float8(runner: ModelRunner) -> Iterator[None]:
    def write(keys: Tensor, values: Tensor, _layer: int, _past: int) -> tuple[Tensor, Tensor]:
        keys, values = (t.to(torch.float8_e4m3fn).to(t.dtype) for t in (keys, values))
        return keys, values

    with rewritten(runner, write):
        yield


@contextmanager
def _empty_slots_attended(runner: ModelRunner) -> Iterator[None]:
    def change(_module: nn.Module, by_name: dict[str, Any]) -> None:
        mask = by_name.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-2] != 1:
            return
        seen = mask if mask.dtype == torch.bool else mask == 0
        behind = seen.flip(-1).int().cummax(-1).values.flip(-1) == 0
        by_name["attention_mask"] = (
            seen | behind if mask.dtype == torch.bool else mask.masked_fill(behind, 0.0)
        )

    with calls(attentions(runner.model), change):
        yield
