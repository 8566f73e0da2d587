"""Faults of the activation function between the two halves of a feed-forward layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

CLOSE = 1e-5
"""The two forms of GELU are up to 5e-4 apart; each computed in another way agrees with itself far better."""


def other_gelu() -> Fault:
    """GELU is computed exactly where the model was trained with its tanh form, or the other way round."""
    return Fault(
        name="gelu-form-swapped",
        summary="GELU is computed exactly where the model uses its tanh form, and by tanh where it uses the exact one",
        thread=(
            "https://github.com/huggingface/transformers/pull/29402",
            "https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/4661",
            "https://github.com/OpenNMT/CTranslate2/issues/1658",
        ),
        kind="model",
        where="activation of the first layer",
        site=Site("module", _first_gelu),
        needs=("GELU",),
        reason_against=_no_gelu,
        plant=_swapped,
    )


def _form(part: nn.Module) -> str | None:
    """Which GELU a module without weights computes, as torch names it; None for anything else."""
    if "gelu" not in type(part).__name__.lower() or any(True for _ in part.parameters()):
        return None
    x = torch.linspace(-4, 4, 65)
    with torch.inference_mode():
        found: Tensor = part.forward(x)
    forms = ("none", "tanh")
    return next(
        (form for form in forms if float((found - gelu(x, approximate=form)).abs().max()) < CLOSE), None
    )


def _gelus(model: Model) -> list[tuple[nn.Module, str]]:
    return [(part, form) for part in model.core.modules() if (form := _form(part)) is not None]


def _first_gelu(model: Model) -> tuple[str, ...]:
    return sites.first_called(model, (part for part, _ in _gelus(model)))


def _no_gelu(model: Model) -> str | None:
    return None if _gelus(model) else "it has no GELU module"


@contextmanager
def _swapped(runner: ModelRunner) -> Iterator[None]:
    def replaced(form: str) -> Any:
        other = "tanh" if form == "none" else "none"
        return lambda _module, args, _output: gelu(args[0], approximate=other)

    with ExitStack() as undo:
        for part, form in _gelus(runner.model):
            undo.callback(part.register_forward_hook(replaced(form)).remove)
        yield
