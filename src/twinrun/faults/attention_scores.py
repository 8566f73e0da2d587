"""Faults of attention scores, before the softmax: a factor that is off, a cap that is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from twinrun.faults import sites
from twinrun.faults.fault import CACHED, Fault, Site
from twinrun.faults.parts import attentions, attribute, forwards, parameters, scale_name
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

CAP_NAME = "attn_logit_softcapping"


def attention_scale_off() -> Fault:
    """Attention scores are 2 % too large."""
    return Fault(
        name="attention-scale-off",
        summary="attention scores of every layer are multiplied by 1.02 before the softmax",
        thread=(
            "https://github.com/huggingface/transformers/issues/31891",
            "https://github.com/TransformerLensOrg/TransformerLens/pull/694",
        ),
        kind="model",
        where="attention of the first layer",
        site=Site("module", sites.first_attention),
        reason_against=_no_scale,
        plant=_wrong_scale,
    )


def attention_softcap_missing() -> Fault:
    """The soft cap on attention scores is left out."""
    return Fault(
        name="attention-softcap-missing",
        summary="the soft cap on attention scores (cap * tanh(scores / cap)) is left out",
        thread=("https://github.com/ggml-org/llama.cpp/pull/8156",),
        kind="model",
        where="attention of the first layer",
        site=Site("module", sites.first_attention),
        needs=("a soft cap on attention scores",),
        reason_against=_no_attention_cap,
        plant=_uncapped,
    )


def decode_step_differs() -> Fault:
    """Forwards of one token take another path through attention than longer ones."""
    return Fault(
        name="decode-step-differs",
        summary="forwards of one token go through a kernel of their own, whose attention scores are 2 % too large",
        thread=("https://github.com/ml-explore/mlx-lm/pull/1189",),
        kind="runner",
        where="attention of the first layer, first decoding step",
        site=Site("module", sites.first_attention),
        needs=("cache", "steps after the prompt"),
        runners=CACHED,
        reason_against=_no_scale,
        plant=_other_decode_path,
    )


def _no_attention_cap(model: Model) -> str | None:
    capped = all(isinstance(vars(part).get(CAP_NAME), float) for part in attentions(model))
    if not attentions(model) or not capped:
        return "it has no soft cap on its attention scores"
    used = getattr(model.config, "_attn_implementation", None) == "eager"
    return None if used else "only its eager attention applies the soft cap"


def _no_scale(model: Model) -> str | None:
    parts = attentions(model)
    return None if parts and all(map(scale_name, parts)) else "its attention uses no scale that can be set"


@contextmanager
def _scaled_scores(part: nn.Module) -> Iterator[None]:
    name = scale_name(part)
    assert name is not None
    factor = 1 / 1.02 if name == "scale_attn" else 1.02  # GPT-J divides by it
    with attribute(part, name, getattr(part, name) * factor):
        yield


@contextmanager
def _wrong_scale(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for part in attentions(runner.model):
            undo.enter_context(_scaled_scores(part))
        yield


@contextmanager
def _other_decode_path(runner: ModelRunner) -> Iterator[None]:
    def run_of(part: nn.Module) -> Callable[[Callable[..., Any], dict[str, Any]], Any]:
        first = parameters(part)[0]

        def run(right: Callable[..., Any], by_name: dict[str, Any]) -> Any:
            if by_name[first].shape[-2] > 1:
                return right(**by_name)
            with _scaled_scores(part):
                return right(**by_name)

        return run

    with ExitStack() as undo:
        for part in attentions(runner.model):
            undo.enter_context(forwards(part, run_of(part)))
        yield


@contextmanager
def _uncapped(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for part in attentions(runner.model):
            undo.enter_context(attribute(part, CAP_NAME, None))
        yield
