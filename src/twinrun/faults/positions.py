"""Faults of position: a decoded token stands at another place than its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults.fault import CACHED, Fault, Site
from twinrun.faults.parts import calls
from twinrun.faults.reasons import no_position_ids, no_window
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

Move = Callable[[Tensor, Any, int], Tensor]
"""(right position ids, cache, tokens cached) -> the position ids handed over instead."""


def position_off_by_one() -> Fault:
    """Every token decoded from the cache stands one position late."""
    return Fault(
        name="position-off-by-one",
        summary="tokens decoded from the cache stand at their position plus one; those of the prompt are not",
        thread=(
            "https://github.com/huggingface/transformers/issues/35350",
            "https://github.com/rajveer43/VeloxQuant-MLX/issues/389",
        ),
        kind="runner",
        where="position ids of the first decoding step",
        site=Site("positions"),
        needs=("cache", "steps after the prompt"),
        runners=CACHED,
        reason_against=no_position_ids,
        plant=_late_positions,
    )


def position_from_rows_kept() -> Fault:
    """Once a sliding-window cache drops rows, decoding counts positions from the rows it still holds."""
    return Fault(
        name="position-from-rows-kept",
        summary="a decoding step takes its position from the rows that a sliding-window cache retained, so that "
        "every token beyond the window stands too early",
        thread=(
            "https://github.com/rajveer43/VeloxQuant-MLX/issues/389",
            "https://github.com/huggingface/transformers/issues/35350",
        ),
        kind="runner",
        where="position ids of the first step beyond the window",
        site=Site("positions"),
        needs=("cache", "sliding window", "steps beyond the window"),
        runners=CACHED,
        reason_against=_no_positions_or_window,
        plant=_retained_positions,
    )


def frozen_decode_position() -> Fault:
    """Every decoding step replays the position of the first."""
    return Fault(
        name="frozen-decode-position",
        summary="decoding steps after the first keep its position, as a captured graph does whose position buffer "
        "is never refreshed",
        thread=(
            "https://github.com/sgl-project/sglang/pull/10892",
            "https://github.com/paiml/aprender/pull/2030",
        ),
        kind="runner",
        where="position ids of the second decoding step",
        site=Site("positions"),
        needs=("cache", "two steps after the prompt"),
        runners=CACHED,
        reason_against=no_position_ids,
        plant=_first_step_positions,
    )


def padded_positions_shared() -> Fault:
    """In a padded batch all rows decode at the position of the longest."""
    return Fault(
        name="padded-positions-shared",
        summary="decoding steps of a padded batch take the cache slot for the position of every row, padding counted",
        thread=(
            "https://github.com/unslothai/unsloth/pull/3795",
            "https://github.com/unslothai/unsloth/pull/4078",
        ),
        kind="runner",
        where="position ids of the first decoding step of a padded row",
        site=Site("positions"),
        needs=("cache", "padding", "steps after the prompt"),
        runners=CACHED,
        reason_against=no_position_ids,
        plant=_slot_positions,
    )


@contextmanager
def moved_steps(runner: ModelRunner, move: Move) -> Iterator[None]:
    """Hand the model other position ids in forwards that find a cache."""

    def change(_module: nn.Module, by_name: dict[str, Any]) -> None:
        ids, cache = by_name["input_ids"], by_name.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if past == 0:
            return
        here = by_name.get("position_ids")
        by_name["position_ids"] = move(positions_of(ids, past) if here is None else here, cache, past)

    with calls([runner.model.core], change):
        yield


def positions_of(ids: Tensor, past: int) -> Tensor:
    """Position ids `[rows, tokens]` of unpadded rows behind `past` tokens."""
    return torch.arange(past, past + ids.shape[1], device=ids.device)[None].expand(ids.shape)


def _no_positions_or_window(model: Model) -> str | None:
    return no_position_ids(model) or no_window(model)


def _late_positions(runner: ModelRunner) -> AbstractContextManager[None]:
    return moved_steps(runner, lambda here, _cache, _past: here + 1)


def _retained_positions(runner: ModelRunner) -> AbstractContextManager[None]:
    def move(here: Tensor, cache: Any, past: int) -> Tensor:
        kept = min(int(layer.keys.shape[-2]) for layer in cache.layers if layer.keys is not None)
        return here - max(0, past - kept)

    return moved_steps(runner, move)


def _first_step_positions(runner: ModelRunner) -> AbstractContextManager[None]:
    captured: list[Any] = [None, None]

    def move(here: Tensor, cache: Any, _past: int) -> Tensor:
        if captured[0] is not cache:
            captured[:] = [cache, here.clone()]
        frozen: Tensor = captured[1]
        return frozen

    return moved_steps(runner, move)


def _slot_positions(runner: ModelRunner) -> AbstractContextManager[None]:
    return moved_steps(runner, lambda here, _cache, past: torch.full_like(here, past))
