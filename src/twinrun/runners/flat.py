"""Turn a captured graph into one flat Python function: a line an operator, no modules, no dispatch in Python.

Each line calls the same ATen operator that was written down. Where torch has a C function for the very same operator
(`torch.add` for `aten.add.Tensor`), that is called: it costs a third of a microsecond less than the operator object.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from twinrun.errors import UnsupportedModelError
from twinrun.runners.scratch import is_once
from twinrun.runners.views import has_effect, merge_views

aten = torch.ops.aten
WHOLE = 9223372036854775807
"""End of a slice that has none."""
DIRECT: dict[Any, Callable[..., Any]] = {
    aten.linear.default: torch._C._nn.linear,
    aten.addmm.default: torch.addmm,
    aten.mm.default: torch.mm,
    aten.mv.default: torch.mv,
    aten.addmv.default: torch.addmv,
    aten.addmv.out: torch.addmv,
    aten.addmm.out: torch.addmm,
    aten.mv.out: torch.mv,
    aten.unbind.int: torch.unbind,
    aten.matmul.default: torch.matmul,
    aten.embedding.default: torch.embedding,
    aten.layer_norm.default: torch.layer_norm,
    aten.scaled_dot_product_attention.default: torch._C._nn.scaled_dot_product_attention,
    aten.gelu.default: torch._C._nn.gelu,
    aten.silu.default: torch._C._nn.silu,
    aten.tanh.default: torch.tanh,
    aten.add.Tensor: torch.add,
    aten.add_.Tensor: Tensor.add_,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.rsqrt.default: torch.rsqrt,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.cat.default: torch.cat,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.narrow.default: torch.narrow,
    aten.reshape.default: torch.reshape,
    aten.as_strided.default: torch.as_strided,
    aten.view.default: Tensor.view,
    aten.expand.default: Tensor.expand,
    aten.empty.memory_format: torch.empty,
    aten.copy_.default: Tensor.copy_,
}
"""Operators with a C function that takes the same arguments in the same order."""
INFIX = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.floordiv: "//", operator.mod: "%"}
CASTS = {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other}
IDLE = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}


@dataclass(slots=True)
class Flat:
    """Source of the function, what it calls, and which tensors of the model it reads, by name."""

    source: str
    calls: dict[str, Any]
    weights: dict[str, tuple[nn.Module, str]]
    constants: dict[str, Tensor] = field(default_factory=dict)
    prepared: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = field(default_factory=dict)
    """Tensors made of weights before the first step: how, and of which."""
    _made: dict[str, tuple[list[Tensor], list[int], Tensor]] = field(default_factory=dict)
    _make: Callable[..., Any] | None = None

    def bind(self) -> Callable[..., Any]:
        """Return the function on the tensors that the model has now; all that are returned share their code."""
        if self._make is None:
            scope: dict[str, Any] = {}
            exec(self.source, scope)  # noqa: S102  text of our own making
            self._make = scope["make"]
        now = {name: _tensor_of(module, key) for name, (module, key) in self.weights.items()}
        for name, (prepare, sources) in self.prepared.items():
            now[name] = self._prepare(name, prepare, [now[source] for source in sources])
        bound: Callable[..., Any] = self._make(**self.calls, **self.constants, **now)
        return bound

    def _prepare(self, name: str, prepare: Callable[..., Tensor], weights: list[Tensor]) -> Tensor:
        """Make a tensor of weights, or take the one made before if none of them has changed since."""
        versions = [-1 if weight.is_inference() else weight._version for weight in weights]
        made = self._made.get(name)
        is_made = made is not None and all(a is b for a, b in zip(made[0], weights, strict=True))
        if made is None or not is_made or made[1] != versions or min(versions) < 0:
            made = self._made[name] = (weights, versions, prepare(*weights))
        return made[2]


def flatten(graph: GraphModule, model: nn.Module, *, direct: bool = True) -> Flat:
    """Write `graph` as a flat function.

    Args:
        graph: a captured step.
        model: whose tensors the graph reads.
        direct: call torch's C functions where they are the same operator; off for `torch.compile`, which knows
            operators better.

    Raises:
        UnsupportedModelError: the graph has parts that are no operator calls.
    """
    simplify(graph)
    merge_views(graph)
    return _Writer(graph, model, direct).write()


def simplify(graph: GraphModule) -> None:
    """Drop what does nothing when a model is evaluated: dropout, aliases, assertions, slices and casts that keep it."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        is_whole = node.target is aten.slice.Tensor and (
            tuple(node.args[2:]) == (0, WHOLE) or _same_shape(node)
        )
        is_dropout = node.target is aten.dropout.default and node.args[2] is False
        if is_whole or is_dropout or node.target in IDLE or _is_idle_cast(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif "_assert" in str(node.target):
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code(has_effect)


def _same_shape(node: Node) -> bool:
    """Whether a slice, forwards in single steps, leaves out nothing: every size is known and stays."""
    before, after = (getattr(n.meta.get("val"), "shape", None) for n in (node.args[0], node))  # type: ignore[union-attr]  # fx types arguments loosely
    return before is not None and before == after and all(type(n) is int for n in before)


def _is_idle_cast(node: Node) -> bool:
    """Whether a node moves or casts to where and what its input is already; torch then returns the input itself."""
    if node.target not in CASTS or node.kwargs.get("copy") or True in node.args:
        return False
    before, after = (n.meta.get("val") for n in (node.args[0], node))  # type: ignore[union-attr]  # fx types arguments loosely
    return all(getattr(before, key, None) == getattr(after, key, 0) for key in ("dtype", "device", "layout"))


def _tensor_of(module: nn.Module, key: str) -> Any:
    for store in (module._parameters, module._buffers, vars(module)):
        if key in store:
            return store[key]
    raise KeyError(key)


class _Writer:
    """Writes one graph."""

    def __init__(self, graph: GraphModule, model: nn.Module, direct: bool) -> None:
        self._graph, self._direct, self._flat = graph, direct, Flat("", {}, {})
        self._homes = {
            id(tensor): (module, key)
            for module in model.modules()
            for store in (vars(module), module._buffers, module._parameters)
            for key, tensor in store.items()
            if isinstance(tensor, Tensor)
        }
        self._names: dict[Node, str] = {}
        self._last = {used: node for node in graph.graph.nodes for used in node.all_input_nodes}

    def write(self) -> Flat:
        lines: list[str] = []
        once: list[str] = []
        inputs: list[str] = []
        for node in self._graph.graph.nodes:
            self._names[node] = node.name
            if node.op == "placeholder":
                inputs.append(node.name)
            elif node.op == "get_attr":
                self._names[node] = self._attribute(node)
            elif node.op == "call_function" and self._is_prepared(node):
                prepare: Any = node.target
                self._flat.prepared[node.name] = (
                    prepare,
                    tuple(self._text(part) for part in node.args),
                )
            elif node.op == "output":
                lines.append(f"return {self._text(node.args[0])}")
            elif node.op == "call_function" and is_once(node):
                once.append(f"{node.name} = {self._call(node)}")
            elif node.op == "call_function":
                lines.append(f"{node.name} = {self._call(node)}{self._freed(node)}")
            else:
                raise UnsupportedModelError(
                    f"a captured step holds {node.op} {node.target}; use step='eager'"
                )
        flat = self._flat
        outer = ", ".join([*flat.calls, *flat.constants, *flat.weights, *flat.prepared])
        body = "".join(f"        {line}\n" for line in lines)
        ahead = "".join(f"    {line}\n" for line in once)
        flat.source = (
            f"def make({outer}):\n{ahead}    def step({', '.join(inputs)}):\n{body}    return step\n"
        )
        return flat

    def _attribute(self, node: Node) -> str:
        value = getattr(self._graph, str(node.target))
        if not isinstance(value, Tensor):
            raise UnsupportedModelError(f"a captured step holds {node.target}; use step='eager'")
        home = self._homes.get(id(value))
        if home is None:
            self._flat.constants[node.name] = value
        else:
            self._flat.weights[node.name] = home
        return node.name

    def _is_prepared(self, node: Node) -> bool:
        """Whether a node is one of our own functions of weights, which runs before the first step."""
        is_ours = getattr(node.target, "__module__", "").startswith("twinrun.")
        return is_ours and all(self._names[used] in self._flat.weights for used in node.all_input_nodes)

    def _freed(self, node: Node) -> str:
        """Let go of tensors after their last use, so that their memory is used again."""
        kept = self._flat.prepared
        ended = [u for u in node.all_input_nodes if self._last[u] is node and u.op == "call_function"]
        done = [self._names[u] for u in ended if u.name not in kept and not is_once(u)]
        done += [] if node in self._last else [node.name]
        return f"; del {', '.join(done)}" if done else ""

    def _call(self, node: Node) -> str:
        target, args = node.target, [self._text(arg) for arg in node.args]
        if target in INFIX:
            return f"{args[0]} {INFIX[target]} {args[1]}"
        if target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if target is aten.slice.Tensor and len(args) == 4 and args[1].isdigit():
            end = "" if node.args[3] == WHOLE else args[3]
            return f"{args[0]}[{':, ' * int(args[1])}{args[2]}:{end}]"
        named = [f"{key}={self._text(value)}" for key, value in node.kwargs.items()]
        return f"{self._function(target)}({', '.join([*args, *named])})"

    def _function(self, target: Any) -> str:
        title = target.__name__ if isinstance(target, FunctionType) else str(target)
        name = "f_" + "".join(c if c.isalnum() else "_" for c in title)
        if not callable(target):
            raise UnsupportedModelError(f"a captured step calls {target}; use step='eager'")
        self._flat.calls[name] = (
            (DIRECT.get(target) or getattr(target, "_op", target)) if self._direct else target
        )
        return name

    def _text(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._names[value]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._text, value))}]"
        if value is None or isinstance(value, (bool, int, str)):
            return repr(value)
        if isinstance(value, float) and math.isfinite(value):
            return repr(value)
        name = f"c_{len(self._flat.calls)}"
        self._flat.calls[name] = value
        return name
