"""Memory that a step uses again in every step: products write into it, and views of it are made once a run.

A view costs a microsecond, as much as a small operator, and the parts of a product are named in every step anew. Where
nothing that leaves the step can be the same memory, the product writes into a tensor of its own (`out=`), and its
views are made before the first step. Sums of a residual stream go into the memory of the stream, and so do products
that are added to it.
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
    aten.addmm.default: aten.addmm.out,
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


SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.addmm.out)
"""What makes a sum in memory of its own, or adds into one."""


def is_once(node: Node) -> bool:
    """Whether a node runs once a run, before the first step."""
    return bool(node.meta.get("once"))


def settle(graph: GraphModule) -> int:
    """Give memory of their own to products whose result stays inside the step; returns how many."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in WRITERS or _leaves(node):
            continue
        if node.kwargs or not _is_one_row(node):
            continue
        value: Any = node.meta["val"]
        with graph.graph.inserting_before(node):
            room = graph.graph.call_function(
                aten.empty.memory_format, (list(value.shape),), {"dtype": value.dtype}
            )
            _lay_bias(graph, node)
        room.meta["once"], room.meta["val"] = True, value
        node.replace_all_uses_with(room)
        node.target, node.kwargs = WRITERS[node.target], {"out": room}
        _views_once(room)
        count += 1
    return count


def _lay_bias(graph: GraphModule, node: Node) -> None:
    """Hand `addmm` its bias in the form of its result, so that it has none to broadcast."""
    bias: Any = node.args[0]
    if node.target is not aten.addmm.default or bias.op != "get_attr":
        return
    value: Any = node.meta["val"]
    laid = graph.graph.call_function(aten.reshape.default, (bias, list(value.shape)))
    laid.meta["once"], laid.meta["val"] = True, value
    node.update_arg(0, laid)


def _is_one_row(node: Node) -> bool:
    value: Any = node.meta["val"]
    return type(value.numel()) is int and value.numel() == value.shape[-1]


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


def add_products(graph: GraphModule) -> int:
    """Add a product of one row and its bias straight into the sum that takes them; returns how many.

    `stream + (bias + row @ weight)` becomes `(stream + bias) + row @ weight` in the memory of `stream`: it
    rounds elsewhere.
    """
    order = {node: number for number, node in enumerate(graph.graph.nodes)}
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
            continue
        for product, stream in (node.args, node.args[::-1]):
            if not _is_lone_product(product) or not _is_ended_sum(stream, node, order):
                continue
            if not _same_form(stream, product, node):
                continue
            bias, rows, weight = product.args
            with graph.graph.inserting_before(node):
                biased = graph.graph.call_function(aten.add_.Tensor, (stream, bias))
                made = graph.graph.call_function(aten.addmm.out, (biased, rows, weight), {"out": biased})
            for new in (biased, made):
                new.meta["val"], order[new] = node.meta["val"], order[node]
            node.replace_all_uses_with(made)
            for old in (node, product):
                graph.graph.erase_node(old)
            count += 1
            break
    return count


def _is_lone_product(value: Any) -> bool:
    """Whether a value is an `addmm` of one row with a bias of the model that nothing else reads."""
    is_product = isinstance(value, Node) and value.target is aten.addmm.default and not value.kwargs
    return is_product and len(value.users) == 1 and _is_one_row(value) and value.args[0].op == "get_attr"


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
    if not isinstance(value, Node) or value.target not in SUMS:
        return False
    others = [user for user in value.users if user is not at]
    return all(user.target in FRESH and order[user] < order[at] for user in others)


def _same_form(*nodes: Node) -> bool:
    values: list[Any] = [node.meta.get("val") for node in nodes]
    return all(
        isinstance(v, torch.Tensor) and v.shape == values[0].shape and v.dtype == values[0].dtype
        for v in values
    )
