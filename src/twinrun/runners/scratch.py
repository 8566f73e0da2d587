"""Memory that a step uses again in every step: products write into it, and views of it are made once a run.

A view costs a microsecond, as much as a small operator, and the parts of a product are named in every step anew. Where
nothing that leaves the step can be the same memory, the product writes into a tensor of its own (`out=`), and its
views are made before the first step. Sums of a residual stream go into the memory of the stream. No number is computed
otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from twinrun.runners.int8_rows import int8_rows_biased
from twinrun.runners.views import RESHAPES

aten = torch.ops.aten
WRITERS: dict[Any, Any] = {
    aten.mv.default: aten.mv.out,
    aten.addmv.default: aten.addmv.out,
    int8_rows_biased: int8_rows_biased,
}
"""Products, and what they are called where they write into given memory."""
FIXED_VIEWS = (*RESHAPES, aten.as_strided.default, aten.narrow.default)
FRESH = {
    *WRITERS,
    *WRITERS.values(),
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.neg.default,
    aten.gelu.default,
    aten.silu.default,
    aten.relu.default,
    aten.layer_norm.default,
    aten.rsqrt.default,
    aten.mean.dim,
    aten.pow.Tensor_Scalar,
    aten.cat.default,
    aten.linear.default,
    aten.matmul.default,
    aten.scaled_dot_product_attention.default,
    aten.copy_.default,
}
"""Operators whose result is never memory of what they read; the result of a write into the cache is the cache."""


def is_once(node: Node) -> bool:
    """Whether a node runs once a run, before the first step."""
    return bool(node.meta.get("once"))


def settle(graph: GraphModule) -> int:
    """Give memory of their own to products whose result stays inside the step; returns how many."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in WRITERS or _leaves(node):
            continue
        value: Any = node.meta["val"]
        with graph.graph.inserting_before(node):
            room = graph.graph.call_function(
                aten.empty.memory_format, (list(value.shape),), {"dtype": value.dtype}
            )
        room.meta["once"], room.meta["val"] = True, value
        node.replace_all_uses_with(room)
        node.target, node.kwargs = WRITERS[node.target], {"out": room}
        _views_once(room)
        count += 1
    return count


def _views_once(node: Node) -> None:
    for user in node.users:
        if user.target in FIXED_VIEWS and user.all_input_nodes == [node] and "out" not in user.kwargs:
            user.meta["once"] = True
            _views_once(user)


def _leaves(node: Node) -> bool:
    """Whether what a step returns, or writes to the cache by reference, could be the memory of this node."""
    seen, todo = {node}, [node]
    while todo:
        for user in todo.pop().users:
            if user.op == "output":
                return True
            if user.target not in FRESH and user not in seen:
                seen.add(user)
                todo.append(user)
    return False


def add_in_place(graph: GraphModule) -> int:
    """Add into the first operand where that is a sum which nobody reads later; returns how many."""
    order = {node: number for number, node in enumerate(graph.graph.nodes)}
    count = 0
    for node in graph.graph.nodes:
        if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
            continue
        first, second = node.args
        if _is_ended_sum(first, node, order) and isinstance(second, Node) and _same_form(first, second, node):
            node.target = aten.add_.Tensor
            count += 1
    return count


def _is_ended_sum(value: Any, at: Node, order: dict[Node, int]) -> bool:
    if not isinstance(value, Node) or value.target not in (aten.add.Tensor, aten.add_.Tensor):
        return False
    others = [user for user in value.users if user is not at]
    return all(user.target in FRESH and order[user] < order[at] for user in others)


def _same_form(*nodes: Node) -> bool:
    values: list[Any] = [node.meta.get("val") for node in nodes]
    return all(
        isinstance(v, torch.Tensor) and v.shape == values[0].shape and v.dtype == values[0].dtype
        for v in values
    )
