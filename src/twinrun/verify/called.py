"""One module called by itself, with the arguments that a forward of the whole model gave it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.verify.activations import Activations, flatten
from twinrun.verify.recorder import recording_part
from twinrun.verify.shadow import CACHE_NAMES
from twinrun.verify.watch import Forward

HELD_BYTES = 256 * 2**20
"""Inputs of modules that are held at most."""


@dataclass(slots=True)
class Held:
    """What each module was called with in a forward."""

    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    seen: dict[int, Tensor] = field(default_factory=dict)
    is_full: bool = False
    """More than `HELD_BYTES` would have been held, and nothing is."""

    def attach(self, core: nn.Module, wanted: Callable[[str], bool], undo: ExitStack) -> None:
        """Hook every wanted module inside a model until `undo` ends."""
        for name, part in core.named_modules():
            if name and wanted(name):
                undo.callback(part.register_forward_pre_hook(self._hook(name), with_kwargs=True).remove)

    def _hook(self, name: str) -> Any:

        def hold(_part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.is_full:
                return
            self.calls[name] = (args, kwargs)
            self.seen.update({id(t): t for t in flatten([args, kwargs])})
            if sum(t.nbytes for t in self.seen.values()) > HELD_BYTES:
                self.is_full = True
                self.calls.clear()
                self.seen.clear()

        return hold


def called(
    side: Any,
    name: str,
    held: Held,
    row: Sequence[int],
    forward: Forward,
    wanted: Callable[[str], bool],
    *,
    up: bool,
) -> Activations | None:
    """Call one module as a forward of its model did, without a cache; None if it cannot be called on its own.

    Args:
        side: whose module; needs `module` and `raised_part`.
        name: path of the module.
        held: what it is called with.
        row: the text.
        forward: the forward that `held` is of.
        wanted: which modules inside to record, by name.
        up: one precision up.
    """
    if name not in held.calls:
        return None
    part: nn.Module = side.module.get_submodule(name)
    device = next(part.parameters(), torch.zeros(())).device
    raised: AbstractContextManager[torch.dtype | None] = side.raised_part(name) if up else nullcontext()
    try:
        with torch.inference_mode(), raised as dtype:
            args, kwargs = (_moved(given, device, dtype) for given in held.calls[name])
            with recording_part(part, name, row, replace(forward, cache=(), slots=()), wanted) as found:
                part(*args, **{k: None if k in CACHE_NAMES else v for k, v in kwargs.items()})
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return None
    return found


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Copy of arguments on a device, floating tensors in a precision (None leaves theirs)."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {k: _moved(v, device, dtype) for k, v in value.items()}
    return type(value)(_moved(v, device, dtype) for v in value) if type(value) in (tuple, list) else value
