"""The tanh form of GELU as one operator: GPT-2's modelling code writes it in eight, each a pass over the row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import GraphModule, Node

from twinrun.runners.views import has_effect

aten = torch.ops.aten
SCALE, CUBIC = math.sqrt(2.0 / math.pi), 0.044715
"""Numbers of the tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415v5, section 2)."""


def fuse_gelu(graph: GraphModule) -> int:
    """Turn `x * 0.5 * (1 + tanh(SCALE * (x + CUBIC * x ** 3)))` into `gelu(x, approximate="tanh")`; returns how many.

    It rounds elsewhere. Parts of the formula that something else reads as well stay where they are.
    """
    count = 0
    for node in list(graph.graph.nodes):
        x = _inner(node)
        if x is None:
            continue
        with graph.graph.inserting_before(node):
            made = graph.graph.call_function(aten.gelu.default, (x,), {"approximate": "tanh"})
        made.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(made)
        count += 1
    graph.graph.eliminate_dead_code(has_effect)
    return count


def _inner(node: Node) -> Any:
    """Return the node that GELU is taken of, if a node is the last product of the formula; else None."""
    for half, rest in _orders(node, aten.mul.Tensor):
        x = _times(half, 0.5)
        tanh = _plus_one(rest)
        if x is None or tanh is None or tanh.target is not aten.tanh.default:
            continue
        total = _times(tanh.args[0], SCALE)
        for first, cubic in _orders(total, aten.add.Tensor):
            power = _times(cubic, CUBIC)
            if first is x and power is not None and _is_cube_of(power, x):
                return x
    return None


def _orders(node: Any, target: Any) -> list[tuple[Any, Any]]:
    """Both orders of a call's two operands; nothing if the node is another call."""
    if not isinstance(node, Node) or node.target is not target or len(node.args) != 2 or node.kwargs:
        return []
    first, second = node.args
    return [(first, second), (second, first)]


def _times(node: Any, number: float) -> Any:
    """Return the other factor where a node is a product with `number`; else None."""
    return next((x for x, y in _orders(node, aten.mul.Tensor) if _is_number(y, number)), None)


def _plus_one(node: Any) -> Any:
    return next((x for x, y in _orders(node, aten.add.Tensor) if _is_number(y, 1.0)), None)


def _is_cube_of(node: Node, x: Node) -> bool:
    return node.target is aten.pow.Tensor_Scalar and node.args[0] is x and _is_number(node.args[1], 3.0)


def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, (int, float)) and float(value) == number
