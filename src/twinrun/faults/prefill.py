"""Faults of a prompt that is run in chunks: the second one starts again at zero, or forgets the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults.fault import CACHED, Fault, Site
from twinrun.faults.parts import attentions, calls, forwards
from twinrun.faults.positions import positions_of
from twinrun.faults.reasons import no_attention, no_position_ids
from twinrun.runners.runner import ModelRunner

Second = Callable[[Callable[..., Any], dict[str, Any]], Any]
"""(right forward, its arguments by name) -> output: how the second chunk is run."""


def chunk_positions() -> Fault:
    """The position ids of the second chunk of a prompt start at zero again."""
    return Fault(
        name="chunked-prefill-positions",
        summary="a prompt is run in two chunks, and the positions of the second start at zero again",
        thread=("https://github.com/huggingface/transformers/issues/43082",),
        kind="runner",
        where="position ids of the second chunk of the prompt",
        site=Site("positions"),
        needs=("cache", "prompt of two chunks"),
        runners=CACHED,
        reason_against=no_position_ids,
        plant=_restarted,
    )


def chunk_keys() -> Fault:
    """The second chunk of a prompt attends to its own keys only."""
    return Fault(
        name="chunked-prefill-keys",
        summary="a prompt is run in two chunks, and the second attends to its own keys only",
        thread=(
            "https://github.com/GeeeekExplorer/nano-vllm/pull/213",
            "https://github.com/vllm-project/vllm/issues/26042",
        ),
        kind="runner",
        where="attention mask of the second chunk of the prompt",
        site=Site("mask"),
        needs=("cache", "prompt of two chunks"),
        runners=CACHED,
        reason_against=no_attention,
        plant=_own_keys_only,
    )


def plainly(right: Callable[..., Any], by_name: dict[str, Any]) -> Any:
    """Run the second chunk as it should be."""
    return right(**by_name)


@contextmanager
def in_chunks(runner: ModelRunner, second: Second = plainly) -> Iterator[None]:
    """Run every prompt of two tokens and more in two chunks; without `second` the result is the same."""
    takes_positions = "position_ids" in runner.model.accepts

    def run(right: Callable[..., Any], by_name: dict[str, Any]) -> Any:
        ids, cache = by_name["input_ids"], by_name.get("past_key_values")
        cut = ids.shape[1] // 2
        if cache is None or cut == 0 or int(cache.get_seq_length()) > 0:
            return right(**by_name)
        parts = ({**by_name, "input_ids": ids[:, :cut]}, {**by_name, "input_ids": ids[:, cut:]})
        if by_name.get("attention_mask") is not None:
            parts[0]["attention_mask"] = by_name["attention_mask"][:, :cut]
        if takes_positions:
            here = by_name.get("position_ids")
            here = positions_of(ids, 0) if here is None else here
            parts[0]["position_ids"], parts[1]["position_ids"] = here[:, :cut], here[:, cut:]
        right(**parts[0])
        return second(right, parts[1])

    with forwards(runner.model.core, run):
        yield


def _restarted(runner: ModelRunner) -> AbstractContextManager[None]:
    def second(right: Callable[..., Any], by_name: dict[str, Any]) -> Any:
        return right(**{**by_name, "position_ids": positions_of(by_name["input_ids"], 0)})

    return in_chunks(runner, second)


def _own_keys_only(runner: ModelRunner) -> AbstractContextManager[None]:
    parts = attentions(runner.model)

    def hide(_module: nn.Module, by_name: dict[str, Any]) -> None:
        mask = by_name.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            return
        is_bool = mask.dtype == torch.bool
        columns = torch.arange(mask.shape[-1], device=mask.device)
        newest = ((mask[:, :, -1:] if is_bool else mask[:, :, -1:] == 0) * columns).amax(-1, keepdim=True)
        own = columns > newest - mask.shape[-2]
        by_name["attention_mask"] = (
            mask & own if is_bool else mask.masked_fill(~own, torch.finfo(mask.dtype).min)
        )

    def second(right: Callable[..., Any], by_name: dict[str, Any]) -> Any:
        with calls(parts, hide):
            return right(**by_name)

    return in_chunks(runner, second)
