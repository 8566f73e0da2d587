"""Faults behind the last layer: another head, no bias, no soft cap, another scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute, outputs, parameter
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

FRESH_HEAD_SEED = 20_261_101


def head_not_loaded() -> Fault:
    """The head keeps the random numbers it was created with."""
    return Fault(
        name="head-not-loaded",
        summary="the weights of the head (tied to the embedding or not) are never loaded and stay random",
        thread=(
            "https://github.com/sgl-project/sglang/pull/1508",
            "https://github.com/vllm-project/vllm/issues/5621",
        ),
        kind="model",
        where="head",
        site=Site("module", sites.head),
        reason_against=_no_head_weight,
        plant=_fresh_head,
    )


def head_bias_dropped() -> Fault:
    """The head's bias is left out."""
    return Fault(
        name="head-bias-dropped",
        summary="logits are computed from the head's weight alone, without its bias",
        thread=(),
        kind="model",
        where="head",
        site=Site("module", sites.head),
        needs=("a head with bias",),
        reason_against=_no_head_bias,
        plant=_no_bias,
    )


def softcap_missing() -> Fault:
    """The soft cap on the logits is left out."""
    return Fault(
        name="softcap-missing",
        summary="the final soft cap (cap * tanh(logits / cap)) is left out",
        thread=("https://github.com/ggml-org/llama.cpp/pull/8156",),
        kind="model",
        where="behind the head",
        site=Site("module", sites.behind_the_head),
        needs=("a soft cap",),
        reason_against=_no_softcap,
        plant=_no_cap,
    )


def logit_scale_off() -> Fault:
    """Logits come out 2 % too large."""
    return Fault(
        name="logit-scale-off",
        summary="logits are multiplied by 1.02, as with a wrong divisor or temperature",
        thread=(),
        kind="model",
        where="behind the head",
        site=Site("module", sites.behind_the_head),
        reason_against=_no_logits_field,
        plant=_scaled_logits,
    )


def _no_head_weight(model: Model) -> str | None:
    head = model.layout.head
    return (
        None
        if head is not None and isinstance(head._parameters.get("weight"), Tensor)
        else "its head has no weight matrix"
    )


def _no_head_bias(model: Model) -> str | None:
    bias = None if model.layout.head is None else model.layout.head._parameters.get("bias")
    if bias is None:
        return "its head has no bias"
    return None if bool(bias.any()) else "the bias of its head is zero"


def _no_softcap(model: Model) -> str | None:
    return (
        None if getattr(model.config, "final_logit_softcapping", None) else "it has no soft cap on its logits"
    )


def _no_logits_field(model: Model) -> str | None:
    return None if model.layout.head is not None else "it has no head"


@contextmanager
def _fresh_head(runner: ModelRunner) -> Iterator[None]:
    head = runner.model.layout.head
    assert head is not None
    right = head._parameters["weight"]
    assert right is not None
    numbers = torch.randn(right.shape, generator=torch.Generator().manual_seed(FRESH_HEAD_SEED))
    fresh = (numbers * float(right.detach().float().std())).to(right.device, right.dtype)
    with parameter(head, "weight", nn.Parameter(fresh, requires_grad=False)):
        yield


@contextmanager
def _no_bias(runner: ModelRunner) -> Iterator[None]:
    head = runner.model.layout.head
    assert head is not None
    with parameter(head, "bias", None):
        yield


@contextmanager
def _no_cap(runner: ModelRunner) -> Iterator[None]:
    with attribute(runner.model.config, "final_logit_softcapping", None):
        yield


@contextmanager
def _scaled_logits(runner: ModelRunner) -> Iterator[None]:
    def change(output: Any) -> Any:
        if isinstance(output, Tensor):
            return output * 1.02
        output.logits = output.logits * 1.02
        return output

    with outputs([runner.model.core], change):
        yield
