"""Faults inside attention: values too large, heads that read another head's keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attentions, middle, outputs
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner


def value_scale_off() -> Fault:
    """Values of one head are 1 % too large (of all heads, a norm behind would take it out again)."""
    return Fault(
        name="value-scale-off",
        summary="the values of the first key-value head of the middle layer come out multiplied by 1.01",
        thread=(
            "https://github.com/sgl-project/sglang/pull/20705",
            "https://github.com/vllm-project/vllm/pull/11906",
        ),
        kind="model",
        where="value projection of the middle layer",
        site=Site("module", _middle_values),
        reason_against=_no_value_projection,
        plant=_scaled_values,
    )


def heads_tiled() -> Fault:
    """Query head h reads key-value head h mod n instead of h div group."""
    return Fault(
        name="gqa-heads-tiled",
        summary="key-value heads are tiled (0 1 0 1) where the model repeats them (0 0 1 1)",
        thread=("https://github.com/onnx/onnx/pull/7274", "https://github.com/ekzhang/jax-js/pull/180"),
        kind="model",
        where="attention of the first layer",
        site=Site("module", sites.first_attention),
        needs=("GQA",),
        reason_against=_no_groups,
        plant=_tiled,
    )


def _no_value_projection(model: Model) -> str | None:
    parts = attentions(model)
    return (
        None
        if parts and isinstance(getattr(middle(parts), "v_proj", None), nn.Module)
        else "it has no separate value projection"
    )


def _middle_values(model: Model) -> tuple[str, ...]:
    part = middle(attentions(model))
    return sites.paths(model, [part, getattr(part, "v_proj", None)])


def _head_counts(model: Model) -> tuple[int, int]:
    config = model.config
    return int(getattr(config, "num_attention_heads", 0)), int(getattr(config, "num_key_value_heads", 0) or 0)


def _no_groups(model: Model) -> str | None:
    heads, kv_heads = _head_counts(model)
    if not 1 < kv_heads < heads:
        return f"with {heads} query and {kv_heads} key-value heads tiling and repeating are the same"
    for part in attentions(model):
        query, norm = getattr(part, "q_proj", None), getattr(part, "q_norm", None)
        width = heads * int(getattr(part, "head_dim", 0))
        if not hasattr(part, "o_proj") or getattr(query, "out_features", 0) != width:
            return "it has no separate query and output projections"
        if hasattr(part, "sinks") or (norm is not None and not _is_shared(norm, width // heads)):
            return "its heads have weights of their own, which this fault would also mix up"
    return None


def _is_shared(norm: nn.Module, head_dim: int) -> bool:
    """Whether a norm has one weight a channel of a head, the same for all heads."""
    weight = getattr(norm, "weight", None)
    return isinstance(weight, Tensor) and tuple(weight.shape) == (head_dim,)


@contextmanager
def _scaled_values(runner: ModelRunner) -> Iterator[None]:
    heads, kv_heads = _head_counts(runner.model)
    projection = middle(attentions(runner.model)).v_proj
    assert isinstance(projection, nn.Module)

    def change(values: Tensor) -> Tensor:
        width = values.shape[-1] // (kv_heads or heads)
        return torch.cat([values[..., :width] * 1.01, values[..., width:]], dim=-1)

    with outputs([projection], change):
        yield


@contextmanager
def _tiled(runner: ModelRunner) -> Iterator[None]:
    """Reorder query heads so that each meets the key-value head of tiling, and put their results back."""
    heads, kv_heads = _head_counts(runner.model)
    group = heads // kv_heads
    order = [j * kv_heads + k for k in range(kv_heads) for j in range(group)]
    back = [order.index(h) for h in range(heads)]

    def reordered(flat: Tensor, by: list[int]) -> Tensor:
        return flat.reshape(*flat.shape[:-1], heads, -1)[..., by, :].reshape(flat.shape)

    def before_output(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (reordered(args[0], back), *args[1:])

    with ExitStack() as undo:
        for part in attentions(runner.model):
            query, output = part.q_proj, part.o_proj
            assert isinstance(query, nn.Module)
            assert isinstance(output, nn.Module)
            undo.enter_context(outputs([query], lambda out: reordered(out, order)))
            undo.callback(output.register_forward_pre_hook(before_output).remove)
        yield
