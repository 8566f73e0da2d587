"""Faults of a precision too narrow for what passes through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site, always
from twinrun.faults.parts import middle, outputs
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

TIMES_TOO_LARGE = 2.0


def float16_overflow() -> Fault:
    """Hidden states of one layer pass through float16 and are too large for it."""
    return Fault(
        name="activations-overflow-float16",
        summary="hidden states leaving the middle layer pass through float16, scaled so that the largest is twice "
        "what float16 holds, as large models have them; what overflows is infinite",
        thread=(
            "https://github.com/huggingface/transformers/issues/39972",
            "https://github.com/huggingface/transformers/pull/33312",
        ),
        kind="model",
        where="output of the middle layer",
        site=Site("module", _middle_layer),
        needs=("activations beyond 65504 (scaled up here; then every precision has it)",),
        reason_against=always,
        plant=_overflowing,
    )


def _middle_layer(model: Model) -> tuple[str, ...]:
    return sites.paths(model, [middle(list(model.layout.layers))])


def _through_float16(hidden: Tensor) -> Tensor:
    largest = hidden.abs().amax().clamp_min(torch.finfo(hidden.dtype).tiny)
    scale = TIMES_TOO_LARGE * torch.finfo(torch.float16).max / largest.float()
    return ((hidden.float() * scale).half().float() / scale).to(hidden.dtype)


@contextmanager
def _overflowing(runner: ModelRunner) -> Iterator[None]:
    def change(output: Any) -> Any:
        if isinstance(output, Tensor):
            return _through_float16(output)
        return (_through_float16(output[0]), *output[1:])

    with outputs([middle(list(runner.model.layout.layers))], change):
        yield
