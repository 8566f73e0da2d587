"""Fewer calls for one row: activations without their axes of size one, and one product where several share a vector.

Both rest on the shapes that were captured, not on names. Operators that work number by number, and norms over the last
axis, run on `[width]`, so the reshapes between two products meet and vanish. Products of one vector with small weights
(queries, keys and values; gate and up) become one product on the weights laid upon each other; who read one of them
reads its part of the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from twinrun.runners.int8_rows import int8_rows, int8_rows_biased
from twinrun.runners.views import RESHAPES, has_effect

aten = torch.ops.aten
MAX_STACKED_BYTES = 1_000_000
"""Weights up to this size are stacked: that copies them, and what it saves is the cost of a call."""
PRODUCTS = (aten.mv.default, aten.addmv.default, int8_rows, int8_rows_biased)
"""Products with one row; that row is their last argument."""
WANT_MATRIX = (aten.addmm.default, int8_rows, int8_rows_biased)
"""Products that want their row as a matrix of one row."""
BY_NUMBER = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.neg.default,
    aten.rsqrt.default,
    aten.pow.Tensor_Scalar,
    aten.gelu.default,
    aten.silu.default,
    aten.relu.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.to.dtype,
}
"""Operators that give each number on its own, from one tensor or from several that are broadcast."""


def stacked(*parts: Tensor) -> Tensor:
    """Return matrices with equal columns, or vectors, one after another."""
    return torch.cat(parts)


def lay_flat(graph: GraphModule) -> int:
    """Let operators on one row work on `[width]`; returns how many. Views are left to be merged.

    Int8 products and `addmm` want `[1, width]`; where there are any, everything takes that form.
    """
    count = 0
    ahead = [1] if any(node.target in WANT_MATRIX for node in graph.graph.nodes) else []
    for node in list(graph.graph.nodes):
        if not _works_on_last_axis(node):
            continue
        value: Any = node.meta["val"]
        with graph.graph.inserting_before(node):
            inputs = {used: _vector(graph, used, ahead) for used in node.all_input_nodes}
        with graph.graph.inserting_after(node):
            back = graph.graph.call_function(aten.reshape.default, (node, list(value.shape)))
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
        for used, vector in inputs.items():
            node.replace_input_with(used, vector)
        back.meta["val"], node.meta["val"] = value, value.reshape([*ahead, -1])
        count += 1
    return count


def _vector(graph: GraphModule, node: Node, ahead: list[int]) -> Node:
    value: Any = node.meta.get("val")
    if value is None or value.ndim == 1:
        return node
    made = graph.graph.call_function(aten.reshape.default, (node, [*ahead, int(value.shape[-1])]))
    made.meta["val"] = value.reshape([*ahead, -1])
    return made


def _works_on_last_axis(node: Node) -> bool:
    if node.op != "call_function" or not _is_row(node) or node.meta["val"].ndim < 2:
        return False
    if node.target is aten.layer_norm.default:
        return len(node.args[1]) == 1 and _is_row(node.args[0])  # type: ignore[arg-type]  # fx types arguments loosely
    if node.target is aten.mean.dim:
        is_last = len(node.args) > 2 and list(node.args[1]) == [-1] and node.args[2] is True  # type: ignore[arg-type]  # fx types arguments loosely
        return is_last and _is_row(node.args[0])
    return node.target in BY_NUMBER and all(_is_row(used) for used in node.all_input_nodes)


def _is_row(node: Any) -> bool:
    """Whether a node gives one row of known width: all axes but the last have size one."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, Tensor) or not value.ndim or any(type(n) is not int for n in value.shape):
        return False
    return value.numel() == value.shape[-1]


def stack(graph: GraphModule) -> int:
    """Make one product of those that share their vector; returns how many are gone. Views must be merged before."""
    groups: dict[Any, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in PRODUCTS and _is_small(node):
            groups.setdefault((node.args[-1], node.target), []).append(node)
    found = [group for group in groups.values() if len(group) > 1]
    for group in found:
        _join(graph, group)
    graph.graph.eliminate_dead_code(has_effect)
    return sum(len(group) - 1 for group in found)


def name_parts(graph: GraphModule) -> int:
    """Let readers of a row that is split read their part of it by one view; returns how many parts."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten.split.Tensor or not _is_row(node.args[0]):
            continue
        row, size = node.args[0], node.args[1]
        axis = node.args[2] if len(node.args) > 2 else 0
        is_last = axis in (-1, row.meta["val"].ndim - 1)
        if not is_last or type(size) is not int or not row.meta["val"].is_contiguous():
            continue
        for part in list(node.users):
            with graph.graph.inserting_before(part):
                _hand_out(graph, part, row, int(part.args[1]) * size)
            count += 1
    graph.graph.eliminate_dead_code(has_effect)
    return count


def _is_small(node: Node) -> bool:
    value: Any = node.meta["val"]
    width = node.args[-1].meta["val"].numel()  # type: ignore[union-attr]  # fx types arguments loosely
    is_own = all(isinstance(part, Node) and part.op == "get_attr" for part in node.args[:-1])
    return is_own and value.numel() * width * value.element_size() <= MAX_STACKED_BYTES


def _join(graph: GraphModule, group: list[Node]) -> None:
    first, call = group[0], graph.graph.call_function
    target: Any = first.target
    kind: Tensor = first.meta["val"]
    with graph.graph.inserting_before(first):
        # Read anew, since the originals may stand behind the first product.
        columns = [
            [graph.graph.create_node("get_attr", str(part.target)) for part in parts]
            for parts in zip(*(node.args[:-1] for node in group), strict=True)
        ]
        laid = [call(stacked, tuple(column)) for column in columns]
        whole = call(target, (*laid, first.args[-1]))
        at = 0
        for node in group:
            size = int(node.meta["val"].numel())
            _hand_out(graph, node, whole, at)
            at += size
    for node in group:  # only now: new nodes are put in before the first
        graph.graph.erase_node(node)
    whole.meta["val"] = kind.new_empty([*kind.shape[:-1], at])


def _hand_out(graph: GraphModule, node: Node, whole: Node, at: int) -> None:
    """Let readers of one product read its part; a reader that only shapes it becomes the view itself."""
    for user in list(node.users):
        if user.target in RESHAPES:
            value: Any = user.meta["val"]
            sizes = [int(n) for n in value.shape]
            strides = [int(torch.Size(sizes[axis + 1 :]).numel()) for axis in range(len(sizes))]
            user.target, user.args, user.kwargs = aten.as_strided.default, (whole, sizes, strides, at), {}
    if node.users:
        axis = node.meta["val"].ndim - 1
        part = graph.graph.call_function(
            aten.narrow.default, (whole, axis, at, int(node.meta["val"].numel()))
        )
        part.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(part)
