"""Faults of a cache that is used again: another prompt's prefix, a draft token that was rejected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from twinrun.faults import sites
from twinrun.faults.caches import rewritten
from twinrun.faults.fault import CACHED, Fault, Site
from twinrun.faults.parts import forwards
from twinrun.faults.positions import positions_of
from twinrun.faults.reasons import no_attention, no_position_ids
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner
from twinrun.verify.probes import boundaries

BLOCK_TOKENS = 2


def prefix_cache_pollution() -> Fault:
    """A prefix cache finds the blocks of an earlier prompt whatever its tokens were."""
    return Fault(
        name="prefix-cache-pollution",
        summary=f"full blocks of {BLOCK_TOKENS} prompt tokens are looked up by their place alone, so that a later "
        "prompt reads the keys and values of an earlier one",
        thread=(
            "https://github.com/vllm-project/vllm/issues/49125",
            "https://github.com/tenstorrent/vllm/issues/415",
        ),
        kind="runner",
        where="cache of every layer, first block of the prompt",
        site=Site("cache", sites.first_attention),
        needs=("cache", "two prompts one after the other"),
        runners=CACHED,
        reason_against=no_attention,
        plant=_blocks_by_place,
    )


def stale_after_rollback() -> Fault:
    """A rejected draft token stays in the cache."""
    return Fault(
        name="stale-cache-after-rollback",
        summary="two draft tokens are run and rejected at the first decoding step, and the cache is rolled back by "
        "one; positions are right",
        thread=(
            "https://github.com/huggingface/transformers/issues/30042",
            "https://github.com/paiml/aprender/pull/2014",
        ),
        kind="runner",
        where="cache of every layer, slot behind the prompt",
        site=Site("cache", sites.first_attention),
        needs=("cache", "steps after the prompt"),
        runners=("kv-cache:dynamic",),
        reason_against=_no_rollback,
        plant=lambda runner: drafted(runner, rolled_back=1),
    )


def _no_rollback(model: Model) -> str | None:
    windows = [name for name, _ in boundaries(model) if name in ("sliding window", "attention chunk")]
    if windows:
        return f"its cache forgets tokens behind the {windows[0]}, so nothing can be rolled back"
    return no_position_ids(model) or no_attention(model)


def _blocks_by_place(runner: ModelRunner) -> AbstractContextManager[None]:
    blocks: dict[Any, tuple[Tensor, Tensor]] = {}

    def write(keys: Tensor, values: Tensor, layer: int, past: int) -> tuple[Tensor, Tensor]:
        if past > 0:
            return keys, values
        keys, values = keys.clone(), values.clone()
        for start in range(
            0, keys.shape[-2] - BLOCK_TOKENS, BLOCK_TOKENS
        ):  # the last token is always computed
            at = slice(start, start + BLOCK_TOKENS)
            place = (layer, start, keys.shape[0], keys.dtype)
            known = blocks.setdefault(place, (keys[..., at, :].clone(), values[..., at, :].clone()))
            keys[..., at, :], values[..., at, :] = known
        return keys, values

    return rewritten(runner, write)


@contextmanager
def drafted(runner: ModelRunner, *, rolled_back: int) -> Iterator[None]:
    """Run two draft tokens before each text's first step and take `rolled_back` out again; two is right."""
    vocab, limit = runner.model.vocab_size, runner.model.max_context
    newest: list[Any] = [None]

    def run(right: Callable[..., Any], by_name: dict[str, Any]) -> Any:
        ids, cache = by_name["input_ids"], by_name.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if cache is None or past == 0:
            return right(**by_name)
        is_first, newest[0] = newest[0] is not cache, cache
        here, mask = by_name.get("position_ids"), by_name.get("attention_mask")
        if here is None:
            here = positions_of(ids, past if is_first else past - (2 - rolled_back))
        if is_first:
            behind = (here + 1).clamp(max=None if limit is None else limit - 1)
            draft = {"input_ids": torch.cat([(ids + 1) % vocab, (ids + 2) % vocab], dim=1)}
            draft["position_ids"] = torch.cat([here, behind], dim=1)
            draft["attention_mask"] = _longer(mask, 1)
            right(**{**by_name, **draft})
            cache.crop(-rolled_back)
        stale = _longer(mask, 2 - rolled_back)
        return right(**{**by_name, "position_ids": here, "attention_mask": stale})

    with forwards(runner.model.core, run):
        yield


def _longer(mask: Tensor | None, extra: int) -> Any:
    """A padding mask with `extra` more slots that are seen; None stays None."""
    return None if mask is None else torch.cat([mask, mask.new_ones(mask.shape[0], extra)], dim=1)
