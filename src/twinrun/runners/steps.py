"""How a forward of one token runs: by the model's own Python, by a captured graph, or by a compiled one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import StaticCache

from twinrun.errors import ConfigError, UnsupportedModelError, near_names
from twinrun.models.model import Model
from twinrun.runners.captured import CapturedStep, Store
from twinrun.runners.compiled import CompiledStep
from twinrun.runners.graphed import GraphedStep
from twinrun.runners.packed import PackedStep
from twinrun.runners.slots import slot_cache

STEPS: dict[str, type[CapturedStep] | None] = {
    "eager": None,
    "captured": CapturedStep,
    "packed": PackedStep,
    "compiled": CompiledStep,
}
"""Steps by name; None is the model's own forward."""
STEP_SUMMARIES = {
    "captured": ("steps replay a graph, bit for bit", "refused where a forward reads numbers out of tensors"),
    "packed": (
        "steps replay a graph whose products of one row are matrix times vector",
        "for batch 1 on a processor",
    ),
    "compiled": ("steps run a compiled graph", "half a minute to compile"),
}
"""What each fast step is for, and what it costs."""
SLOTTED = ("static", "rolling")
"""Kinds of cache whose slots a graph can write to."""


class Steps:
    """Fast steps of one runner: what was captured or compiled is kept from run to run."""

    def __init__(self, kind: type[CapturedStep], model: Model) -> None:
        self._kind, self._model, self.store = kind, model, Store()

    def begin(self, read: Callable[..., Tensor]) -> CapturedStep:
        """Return the step of a new run."""
        return self._kind(self._model, read, self.store)

    def new_cache(self, length: int) -> Any:
        """Return an empty cache of which only filled slots are attended.

        Raises:
            UnsupportedModelError: layers that keep something else than keys and values.
        """
        layers = StaticCache(config=self._model.config, max_cache_len=length).layers
        odd = next(
            (x for x in layers if not type(x).__name__.startswith(("StaticLayer", "StaticSliding"))), None
        )
        if odd is not None:
            raise UnsupportedModelError(
                f"{type(self._model.core).__name__} keeps a {type(odd).__name__}, which a fast step does not write; "
                "use step='eager'"
            )
        return slot_cache(len(layers), length)


def steps_of(step: str, cache: str, model: Model) -> Steps | None:
    """Return the fast steps called `step`, or None for the model's own forward.

    Raises:
        ConfigError: no such step, or a cache without slots.
        UnsupportedModelError: a model that `torch.compile` stands around already.
    """
    if step not in STEPS:
        raise ConfigError(f"no step {step!r}; choose from {', '.join(STEPS)}.{near_names(step, STEPS)}")
    kind = STEPS[step]
    if kind is None:
        return None
    if cache not in SLOTTED:
        raise ConfigError(
            f"step={step!r} writes into slots, and cache={cache!r} has none; use cache='static' or 'rolling'"
        )
    if model.is_compiled:
        raise UnsupportedModelError(
            f"{model.name} is compiled already, so there is no Python to capture; use step='eager'"
        )
    if kind is CompiledStep and model.device.type == "cuda":
        kind = GraphedStep
    return Steps(kind, model)
