"""Faults of padded batches: rows of attention in which nothing is seen become NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults import sites
from twinrun.faults.fault import PADDED, Fault, Site
from twinrun.faults.parts import attentions, calls, outputs
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner


def nan_from_padding() -> Fault:
    """Attention gives NaN where a padded slot sees nothing, and the next layer spreads it."""
    return Fault(
        name="nan-from-padding",
        summary="attention of the first layer gives NaN for padded slots, which see no key; as keys and values of the "
        "next layer they reach every token (0 * NaN)",
        thread=(
            "https://github.com/huggingface/transformers/issues/32390",
            "https://github.com/pytorch/pytorch/issues/103749",
        ),
        kind="model",
        where="attention of the first layer on padded slots, that of the second on tokens",
        site=Site("module", _first_two_attentions),
        needs=("padding",),
        runners=PADDED,
        reason_against=_too_few_layers,
        plant=_nan_in_padding,
    )


def _first_two_attentions(model: Model) -> tuple[str, ...]:
    return sites.paths(model, attentions(model)[:2])


def _too_few_layers(model: Model) -> str | None:
    return None if len(attentions(model)) > 1 else "it has no second attention layer to spread the NaN"


@contextmanager
def _nan_in_padding(runner: ModelRunner) -> Iterator[None]:
    padding: list[Tensor | None] = [None]

    def note(_module: nn.Module, by_name: dict[str, Any]) -> None:
        mask = by_name.get("attention_mask")
        padding[0] = None if mask is None else mask[:, -by_name["input_ids"].shape[1] :] == 0

    def change(output: Any) -> Any:
        if padding[0] is None:
            return output
        hidden = output if isinstance(output, Tensor) else output[0]
        hidden = hidden.masked_fill(padding[0][..., None], torch.nan)
        return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

    with calls([runner.model.core], note), outputs(attentions(runner.model)[:1], change):
        yield
