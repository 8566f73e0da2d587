"""Find the parts that faults break, by module name and signature, and change them so that it is undone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from twinrun.models.model import Model

SCALE_NAMES = ("scaling", "inv_norm_factor", "scale_attn")
EPS_NAMES = ("variance_epsilon", "eps")


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The attention module of a decoder layer, the first whose class is named so."""
    inside = (part for part in layer.modules() if "attention" in type(part).__name__.lower())
    return next((part for part in inside if "attention_mask" in parameters(part)), None)


def attentions(model: Model) -> list[nn.Module]:
    """The attention module of each decoder layer that has one."""
    return [part for layer in model.layout.layers if (part := attention_of(layer)) is not None]


def middle(parts: list[nn.Module]) -> nn.Module:
    """The part halfway down, where a small fault has layers before and behind it."""
    return parts[len(parts) // 2]


def rotaries(model: Model) -> list[nn.Module]:
    """Modules that compute rotary tables from position ids."""
    named = [part for part in model.core.modules() if "rotaryembedding" in type(part).__name__.lower()]
    return [part for part in named if "position_ids" in parameters(part)]


def norms(model: Model) -> list[tuple[nn.Module, str]]:
    """Normalisation modules with the name under which each keeps its epsilon."""
    named = [part for part in model.core.modules() if "norm" in type(part).__name__.lower()]
    return [
        (part, name) for part in named for name in EPS_NAMES if isinstance(getattr(part, name, None), float)
    ]


def scale_name(attention: nn.Module) -> str | None:
    """Under which name an attention module keeps the factor of its scores, and uses it."""
    if hasattr(attention, "inv_norm_factor") and hasattr(attention, "is_causal"):
        return None  # Falcon keeps the factor, but calls torch's attention, which computes its own
    return next(
        (name for name in SCALE_NAMES if isinstance(getattr(attention, name, None), (float, Tensor))), None
    )


def parameters(part: nn.Module) -> list[str]:
    """Names of the parameters of a module's forward, in order."""
    return list(inspect.signature(part.forward).parameters)


@contextmanager
def attribute(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute inside the block; one that was not there is gone again afterwards."""
    own = vars(holder)
    had, before = name in own, own.get(name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if had:
            setattr(holder, name, before)
        else:
            delattr(holder, name)


@contextmanager
def parameter(part: nn.Module, name: str, value: nn.Parameter | None) -> Iterator[None]:
    """Put another parameter (or none) in a module's place for one inside the block."""
    before = part._parameters[name]
    part._parameters[name] = value
    try:
        yield
    finally:
        part._parameters[name] = before


@contextmanager
def outputs(parts: list[nn.Module], change: Callable[[Any], Any]) -> Iterator[None]:
    """Change what modules return inside the block."""
    with ExitStack() as undo:
        for part in parts:
            undo.callback(part.register_forward_hook(lambda _m, _args, out: change(out)).remove)
        yield


@contextmanager
def calls(parts: list[nn.Module], change: Callable[[nn.Module, dict[str, Any]], None]) -> Iterator[None]:
    """Change the arguments of modules inside the block; `change` edits them by name."""
    with ExitStack() as undo:
        for part in parts:
            undo.callback(
                part.register_forward_pre_hook(_renamed(parameters(part), change), with_kwargs=True).remove
            )
        yield


@contextmanager
def forwards(part: nn.Module, run: Callable[[Callable[..., Any], dict[str, Any]], Any]) -> Iterator[None]:
    """Inside the block a module's forward is `run(right forward, arguments by name)`."""
    right, names = part.forward, parameters(part)

    @functools.wraps(right)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return run(right, {**dict(zip(names, args, strict=False)), **kwargs})

    with attribute(part, "forward", forward):
        yield


def _renamed(names: list[str], change: Callable[[nn.Module, dict[str, Any]], None]) -> Callable[..., Any]:
    def hook(
        part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_name = {**dict(zip(names, args, strict=False)), **kwargs}
        change(part, by_name)
        placed = names[: len(args)]
        return tuple(by_name.pop(name) for name in placed), by_name

    return hook
