"""Faults of masking: the future is seen, padding is seen, a real token is hidden, a window is too wide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults.fault import PADDED, Fault, Site, always
from twinrun.faults.parts import attentions, attribute, calls
from twinrun.faults.reasons import no_attention, no_window
from twinrun.runners.runner import ModelRunner

BEYOND_ANY_TEXT = 1 << 24


def causal_mask_dropped() -> Fault:
    """Tokens of one forward see those behind them."""
    return Fault(
        name="causal-mask-dropped",
        summary="every token of a forward attends to the later ones too; padding stays masked",
        thread=("https://github.com/huggingface/transformers/pull/48821",),
        kind="model",
        where="attention mask",
        site=Site("mask"),
        needs=("several tokens in one forward",),
        runners=PADDED,
        reason_against=no_attention,
        plant=_future_seen,
    )


def padding_attended() -> Fault:
    """The mask of a padded batch is ignored."""
    return Fault(
        name="left-padding-attended",
        summary="rows of a padded batch attend to their padding, as if there were no mask",
        thread=(
            "https://github.com/huggingface/transformers/issues/29029",
            "https://github.com/huggingface/trl/issues/469",
        ),
        kind="runner",
        where="attention mask of padded rows",
        site=Site("mask"),
        needs=("padding",),
        runners=PADDED,
        reason_against=always,
        plant=_padding_seen,
    )


def pad_id_masked() -> Fault:
    """The mask is made from the ids, so that a real token with the pad id disappears."""
    return Fault(
        name="pad-id-masked",
        summary="the mask is built as ids != pad, which hides real tokens that have the pad id",
        thread=(
            "https://github.com/huggingface/transformers/issues/35909",
            "https://github.com/huggingface/transformers/issues/35352",
        ),
        kind="runner",
        where="attention mask of tokens with the pad id",
        site=Site("mask"),
        needs=("the pad id inside a text",),
        runners=("single-pass",),
        reason_against=always,
        plant=_pad_id_hidden,
    )


def window_off_by_one() -> Fault:
    """The sliding window is one token too wide."""
    return Fault(
        name="window-off-by-one",
        summary="sliding-window attention reaches one token further back than the model was trained with",
        thread=(
            "https://github.com/huggingface/transformers/issues/39408",
            "https://github.com/vllm-project/vllm/issues/3385",
        ),
        kind="model",
        where="attention mask of windowed layers",
        site=Site("mask"),
        needs=("sliding window", "prompt longer than the window"),
        reason_against=no_window,
        plant=_one_wider_window,
    )


def window_lost() -> Fault:
    """The sliding window is not applied at all."""
    return Fault(
        name="window-lost",
        summary="layers with sliding-window attention attend to the whole text",
        thread=(
            "https://github.com/huggingface/transformers/pull/32522",
            "https://github.com/huggingface/transformers/pull/35691",
        ),
        kind="model",
        where="attention mask of windowed layers",
        site=Site("mask"),
        needs=("sliding window", "prompt longer than the window"),
        reason_against=no_window,
        plant=_no_window_applied,
    )


@contextmanager
def _future_seen(runner: ModelRunner) -> Iterator[None]:
    def change(_module: nn.Module, by_name: dict[str, Any]) -> None:
        mask = by_name.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-2] > 1:
            is_bool = mask.dtype == torch.bool
            column = mask.any(-2, keepdim=True) if is_bool else mask.amax(-2, keepdim=True)
            by_name["attention_mask"] = column.expand(mask.shape).contiguous()

    parts = attentions(runner.model)
    with ExitStack() as undo:
        for part in parts:
            if hasattr(part, "is_causal"):
                undo.enter_context(attribute(part, "is_causal", False))
        undo.enter_context(calls(parts, change))
        yield


@contextmanager
def _padding_seen(runner: ModelRunner) -> Iterator[None]:
    def change(_module: nn.Module, by_name: dict[str, Any]) -> None:
        mask = by_name.get("attention_mask")
        if mask is not None:
            by_name["attention_mask"] = torch.ones_like(mask)

    with calls([runner.model.core], change):
        yield


@contextmanager
def _pad_id_hidden(runner: ModelRunner) -> Iterator[None]:
    pad_id = runner.model.pad_id

    def change(_module: nn.Module, by_name: dict[str, Any]) -> None:
        real = (by_name["input_ids"] != pad_id).long()
        if bool(real.any()) and not bool(real.all()):
            by_name["attention_mask"] = real

    with calls([runner.model.core], change):
        yield


@contextmanager
def _wider_window(runner: ModelRunner, extra: int) -> Iterator[None]:
    config = runner.model.config
    with ExitStack() as undo:
        undo.enter_context(attribute(config, "sliding_window", config.sliding_window + extra))
        for part in runner.model.core.modules():
            width = vars(part).get("sliding_window")
            if isinstance(width, int):
                undo.enter_context(attribute(part, "sliding_window", width + extra))
        yield


def _one_wider_window(runner: ModelRunner) -> AbstractContextManager[None]:
    return _wider_window(runner, 1)


def _no_window_applied(runner: ModelRunner) -> AbstractContextManager[None]:
    return _wider_window(runner, BEYOND_ANY_TEXT)
