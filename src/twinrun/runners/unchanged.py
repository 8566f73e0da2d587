"""What a captured step depends on: two states that are equal may share a graph, and some may have none at all.

Weights may change in place or be replaced: a graph reads them anew in every run. Modules, their settings, the config
and precision are written into the key. Code that a graph would pass by (hooks, a forward put in a module's place, a
mode that intercepts operators) gives a reason instead of a key, and then the model's own forward runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack as _function_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from twinrun.models.linear_up import Up
from twinrun.models.model import Model

OURS = ("twinrun.runners.forward", "twinrun.runners.routing", "twinrun.runners.watched_head")
"""Hooks from these files only look; the graph has their outputs."""
CASTS = "twinrun.models.raised"
"""Hooks from here cast what an embedding looked up; a graph may hold that cast."""
STORES = ("_parameters", "_buffers", "_modules")
PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)


def why_not(model: Model) -> str | None:
    """Return why a graph would pass something by that the model's own forward does now; None if nothing."""
    if _get_current_dispatch_mode_stack():
        return "a mode that intercepts operators is on"
    for mode in _function_modes():  # type: ignore[no-untyped-call]  # unannotated there
        if not isinstance(mode, Up):
            return "a mode that intercepts torch functions is on"
        if mode.slices:
            return "weights are cast in slices, for want of memory"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "hooks on all modules are set"
    for name, module in model.core.named_modules():
        where = name or "the model"
        own = vars(module)
        if "forward" in own or "__call__" in own:
            return f"{where} has a forward that was put in its place"
        if own["training"]:
            return f"{where} is in training mode"
        if any(_is_foreign(module, hook) for hook in _hooks(module)):
            return f"{where} has hooks"
    return None


def _hooks(module: nn.Module) -> Iterator[Any]:
    yield from module._forward_pre_hooks.values()
    yield from module._forward_hooks.values()


def _is_foreign(module: nn.Module, hook: Any) -> bool:
    home = getattr(hook, "__module__", "")
    return not (home in OURS or (home == CASTS and type(module) is nn.Embedding))


def state_of(model: Model) -> Hashable:
    """Return a key of everything besides the numbers in weights that decides what a step computes.

    Cost: about a millisecond for three hundred modules.
    """
    seen: dict[int, int] = {}
    configs: dict[int, Any] = {}
    parts: list[Hashable] = []
    for module in model.core.modules():
        parts.append((id(module), type(module).forward, tuple(_settings(module, seen, configs))))
    modes = tuple(type(mode) for mode in _function_modes())  # type: ignore[no-untyped-call]  # unannotated there
    casts = (torch.is_autocast_enabled(model.device.type), torch.get_autocast_dtype(model.device.type))
    told = tuple(tuple((k, repr(v)) for k, v in vars(c).items()) for c in configs.values())
    return (tuple(parts), modes, casts, told)


def _settings(module: nn.Module, seen: dict[int, int], configs: dict[int, Any]) -> Iterable[Hashable]:
    for store in (module._parameters, module._buffers):
        for key, tensor in store.items():
            yield (key, None if tensor is None else _form(tensor, seen))
    for key, value in vars(module).items():
        if key in STORES or key.endswith("_hooks") or key.endswith("_hooks_with_kwargs"):
            continue
        if isinstance(value, Tensor):
            yield (key, _form(value, seen))
        elif type(value) in PLAIN:
            yield (key, value)
        else:
            yield (key, id(value))
            if hasattr(value, "to_dict"):
                configs[id(value)] = value


def _form(tensor: Tensor, seen: dict[int, int]) -> Hashable:
    """Form and place of a tensor, and which other tensor it is the same as (tied weights)."""
    same_as = seen.setdefault(id(tensor), len(seen))
    return (tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), type(tensor), same_as)


@contextmanager
def untouched(model: Model) -> Iterator[None]:
    """Put back every attribute of every module behind the block: a forward on fake tensors may leave some there."""
    kept = [
        (store, dict(store))
        for module in model.core.modules()
        for store in (vars(module), module._parameters, module._buffers)
    ]
    try:
        yield
    finally:
        for store, before in kept:
            if store.keys() != before.keys() or any(store[k] is not v for k, v in before.items()):
                store.clear()
                store.update(before)
