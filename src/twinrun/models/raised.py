"""Run a model one precision up without a second copy of its weights, and put every bit back afterwards.

Each unit (a decoder layer, an embedding, a norm, the head) that fits into `budget_bytes` is cast up once for the whole
block. Beyond the budget the weights of linear layers stay as they are and are cast in slices that fit into a core's
cache while they are multiplied (`linear_up.py`); whatever else a unit owns is cast up when its forward starts and put
back when it ends. The originals are never written to, so the model is bit-identical afterwards, also when the block
raises.

Inside the block, code that asks for float32 by name (norms, softmax, rotary tables) gets the raised
precision too: otherwise a float64 oracle would round to float32 in every norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from twinrun.errors import UnsupportedModelError
from twinrun.models.linear_up import Up

_UP: WeakKeyDictionary[nn.Module, torch.dtype | None] = WeakKeyDictionary()
"""Modules inside a block of `raised`, whoever opened it: two runners of one model share one raised copy."""


class _Unit:
    """Tensors that are cast up and put back together. Re-entrant, because a unit may call itself or share a tensor."""

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
        self.modules = list(modules)
        self.dtype = dtype
        self.left: frozenset[int] = frozenset()
        self.depth = 0
        self.kept: list[tuple[dict[str, Any], str, Any]] = []

    def raised_bytes(self) -> int:
        tensors = (t for m in self.modules for store in (m._parameters, m._buffers) for t in store.values())
        floats = {id(t): t.numel() for t in tensors if t is not None and t.is_floating_point()}
        return sum(floats.values()) * self.dtype.itemsize

    def leave_linear_weights(self) -> None:
        """Never cast up the weights of linear layers: `Up` multiplies with them as they are."""
        weights = [m.weight for m in self.modules if type(m) is nn.Linear]
        self.left = frozenset(id(w) for w in weights if w.dtype.itemsize < self.dtype.itemsize)

    def up(self) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        raised: dict[int, Any] = {}
        for module in self.modules:
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is None or (
                        store is module._buffers and tensor.dtype.itemsize > self.dtype.itemsize
                    ):
                        continue  # a rotary table stays as fine as it is when weights are cast down
                    if (
                        not tensor.is_floating_point()
                        or tensor.dtype == self.dtype
                        or id(tensor) in self.left
                    ):
                        continue
                    self.kept.append((store, name, tensor))
                    if id(tensor) not in raised:
                        raised[id(tensor)] = _cast(tensor, self.dtype)
                    store[name] = raised[id(tensor)]

    def down(self) -> None:
        self.depth -= 1
        if self.depth == 0:
            for store, name, tensor in self.kept:
                store[name] = tensor
            self.kept.clear()


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    up = tensor.detach().to(dtype)
    return nn.Parameter(up, requires_grad=False) if isinstance(tensor, nn.Parameter) else up


@contextmanager
def raised(
    module: nn.Module, layers: Iterable[nn.Module], dtype: torch.dtype, *, budget_bytes: float = 0
) -> Iterator[None]:
    """Run `module` in `dtype` inside the block.

    Args:
        module: the model.
        layers: its decoder layers; each is one unit, every other module that owns tensors is a unit of its
            own.
        dtype: a precision above the model's.
        budget_bytes: memory for raised copies; the first units that fit are cast once for the whole block, the
            others slice by slice in each of their own forwards.

    Raises:
        UnsupportedModelError: the weights are stored in a packed or integer format that has no higher
            precision here.

    A block inside another of the same module and precision does nothing.

    Cost: one cast of a unit a block, or a forward beyond the budget; the budget, and a megabyte.
    """
    if _UP.get(module) == dtype:
        yield
        return
    refuse_packed(module)
    layers = list(layers)
    inside = {id(part) for layer in layers for part in layer.modules()}
    outside = [part for part in module.modules() if id(part) not in inside and _owns_floats(part)]
    units = [(layer, _Unit(layer.modules(), dtype)) for layer in layers]
    units += [(part, _Unit([part], dtype)) for part in outside if type(part) is not nn.Embedding]
    with ExitStack() as undo:
        undo.enter_context(_eager_experts(module, dtype))
        for part in outside:
            # NOTE: looked-up rows are cast, not the table: the same numbers for far less work.
            if type(part) is nn.Embedding:
                undo.callback(part.register_forward_hook(lambda _m, _a, out: out.to(dtype)).remove)
        for part, unit in units:
            budget_bytes -= unit.raised_bytes()
            if budget_bytes >= 0:
                unit.up()
                undo.callback(unit.down)
            else:
                unit.leave_linear_weights()
                undo.callback(part.register_forward_pre_hook(lambda *_, u=unit: u.up()).remove)
                undo.callback(
                    part.register_forward_hook(lambda *_, u=unit: u.down(), always_call=True).remove
                )
        if dtype == torch.float64 or budget_bytes < 0:
            undo.enter_context(Up(dtype, slices=budget_bytes < 0))
        undo.callback(_UP.__setitem__, module, _UP.get(module))
        _UP[module] = dtype
        yield


def raised_to(module: nn.Module) -> torch.dtype | None:
    """Precision that `module` is being run in inside a block of `raised`, or None outside."""
    return _UP.get(module)


@contextmanager
def raised_part(part: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Run one module and its children in `dtype` inside the block; weights of linear layers are cast in slices."""
    unit = _Unit([m for m in part.modules() if type(m) is not nn.Embedding], dtype)
    unit.leave_linear_weights()
    with ExitStack() as undo:
        undo.enter_context(_eager_experts(part, dtype))
        for table in (m for m in part.modules() if type(m) is nn.Embedding):
            undo.callback(table.register_forward_hook(lambda _m, _a, out: out.to(dtype)).remove)
        undo.callback(unit.down)
        unit.up()
        undo.enter_context(Up(dtype))
        yield


def refuse_packed(module: nn.Module) -> None:
    """Raise when a module keeps weights in a form that cannot be cast up (packed int8, int4, float8).

    Raises:
        UnsupportedModelError: names the first such module.
    """
    for name, part in module.named_modules():
        if getattr(type(part), "one_up", False):
            continue  # our own int8 layers, whose integers and scales are exact in any precision
        own = [*part._parameters.values(), *part._buffers.values()]
        kinds = {t.dtype for t in own if t is not None}
        is_small = any(d.itemsize == 1 and d not in (torch.bool, torch.uint8) for d in kinds)
        if is_small or hasattr(part, "_packed_params"):
            raise UnsupportedModelError(
                f"{name or type(module).__name__} ({type(part).__name__}) holds quantised weights; "
                "they have no higher precision to be run in"
            )


def _owns_floats(part: nn.Module) -> bool:
    own = (*part._parameters.values(), *part._buffers.values())
    return any(t is not None and t.is_floating_point() for t in own)


@contextmanager
def _eager_experts(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Switch mixture-of-experts layers to transformers' eager loop: grouped products have no float64 on a CPU."""
    configs = {id(c): c for c in (getattr(part, "config", None) for part in module.modules())}
    chosen = ((c, getattr(c, "_experts_implementation", None)) for c in configs.values())
    before: list[tuple[Any, Any]] = [(config, value) for config, value in chosen if value]
    try:
        for config, _ in before:
            if dtype == torch.float64:
                config._experts_implementation = "eager"
        yield
    finally:
        for config, value in before:
            config._experts_implementation = value
