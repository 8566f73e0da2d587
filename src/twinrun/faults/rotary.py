"""Faults of rotary position embedding: tables too coarse, frequencies a little off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute, rotaries
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

PLAIN_NAME = "compute_default_rope_parameters"


def bfloat16_table() -> Fault:
    """Rotary angles are computed in bfloat16."""
    return Fault(
        name="rope-table-bfloat16",
        summary="rotary angles are computed in bfloat16, where positions above 256 collide",
        thread=(
            "https://github.com/huggingface/transformers/pull/29285",
            "https://github.com/sgl-project/sglang-jax/issues/1472",
        ),
        kind="model",
        where="rotary embedding",
        site=Site("module", _first_rotary),
        needs=("rotary embedding", "long prompt"),
        reason_against=_no_rotary,
        plant=_coarse_angles,
    )


def frequencies_off() -> Fault:
    """Rotary frequencies are 0.2 % too high."""
    return Fault(
        name="rope-frequencies-off",
        summary="rotary frequencies are multiplied by 1.002, as with a base that was read wrongly",
        thread=(
            "https://github.com/unslothai/unsloth/pull/6197",
            "https://github.com/Blaizzy/mlx-vlm/pull/1710",
        ),
        kind="model",
        where="rotary embedding",
        site=Site("module", _first_rotary),
        needs=("rotary embedding",),
        reason_against=_no_rotary,
        plant=_wrong_frequencies,
    )


def scaling_ignored() -> Fault:
    """The scaling of the rotary embedding in the config is not read."""
    return Fault(
        name="rope-scaling-ignored",
        summary="rotary angles are those of the plain base, whatever scaling the config asks for",
        thread=(
            "https://github.com/unslothai/unsloth/pull/6197",
            "https://github.com/Blaizzy/mlx-vlm/pull/1710",
            "https://github.com/vllm-project/vllm/pull/1956",
        ),
        kind="model",
        where="rotary embedding",
        site=Site("module", _first_rotary),
        needs=("a rotary embedding with scaling",),
        runners=("single-pass", "recompute", "kv-cache:dynamic", "kv-cache:static"),
        reason_against=_no_scaling,
        plant=_plain_frequencies,
    )


def _no_scaling(model: Model) -> str | None:
    parts = rotaries(model)
    kinds = [getattr(part, "rope_type", None) for part in parts]
    if not parts or not all(isinstance(kind, str) and kind != "default" for kind in kinds):
        return "its rotary embedding has no scaling"
    if "dynamic" in kinds:
        return "its scaling begins where its context ends"
    usual = all(hasattr(part, name) for part in parts for name in ("inv_freq", PLAIN_NAME))
    return None if usual else "its rotary embedding keeps no plain frequencies to fall back to"


def _first_rotary(model: Model) -> tuple[str, ...]:
    return sites.first_called(model, rotaries(model))


def _no_rotary(model: Model) -> str | None:
    return None if rotaries(model) else "it has no module that computes rotary tables from positions"


class _FloatMeansBfloat16(TorchFunctionMode):
    """Inside, every request for float32 by name gives bfloat16: the upcast that the bug leaves out."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].bfloat16()
        args = tuple(torch.bfloat16 if a is torch.float32 else a for a in args)
        return func(
            *args, **{k: torch.bfloat16 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        )


@contextmanager
def _wrapped(runner: ModelRunner, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as undo:
        for part in rotaries(runner.model):
            undo.enter_context(attribute(part, "forward", wrap(part.forward)))
        yield


@contextmanager
def _coarse_angles(runner: ModelRunner) -> Iterator[None]:
    def wrap(right: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with _FloatMeansBfloat16():
                return right(*args, **kwargs)

        return forward

    with _wrapped(runner, wrap):
        yield


@contextmanager
def _plain_frequencies(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for part in rotaries(runner.model):
            right: Any = part.inv_freq
            plain, _ = getattr(part, PLAIN_NAME)(part.config)
            undo.enter_context(attribute(part, "rope_type", "default"))
            undo.enter_context(attribute(part, "attention_scaling", 1.0))
            undo.callback(part._buffers.__setitem__, "inv_freq", right)
            part._buffers["inv_freq"] = plain.to(right.device, right.dtype)
        yield


@contextmanager
def _wrong_frequencies(runner: ModelRunner) -> Iterator[None]:
    """Stretch the positions instead of the frequencies: the angle is their product."""

    def wrap(right: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            return right(x, position_ids.double() * 1.002, *args, **kwargs)

        return forward

    with _wrapped(runner, wrap):
        yield
