"""Int8 products of one row: product and bias as one call, in a form that may be stacked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from twinrun.runners.views import RESHAPES, has_effect

aten = torch.ops.aten


def int8_rows(weight: Tensor, scale: Tensor, rows: Tensor) -> Tensor:
    """Return `(rows @ weight.T) * scale` for rows `[1, in]`, weights `[out, in]` in int8 and scales `[out]`."""
    return torch._weight_int8pack_mm(rows, weight, scale)


def int8_rows_biased(
    bias: Tensor, weight: Tensor, scale: Tensor, rows: Tensor, out: Tensor | None = None
) -> Tensor:
    """Return `int8_rows` and a bias, rounded one after the other as the layer's own forward does."""
    return torch.add(torch._weight_int8pack_mm(rows, weight, scale), bias, out=out)


def rewrite_int8(graph: GraphModule) -> int:
    """Turn int8 products of one row into the calls above, whose vector comes last; returns how many."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.target is not aten._weight_int8pack_mm.default or not _is_one_row(node):
            continue
        rows, weight, scale = node.args
        value: Any = node.meta["val"]
        ended, bias = _biased(graph, node)
        with graph.graph.inserting_before(ended):
            if bias is None:
                made = graph.graph.call_function(int8_rows, (weight, scale, rows))
            else:
                made = graph.graph.call_function(int8_rows_biased, (bias, weight, scale, rows))
            back = graph.graph.call_function(aten.reshape.default, (made, _sizes(ended)))
        made.meta["val"], back.meta["val"] = value, ended.meta["val"]
        ended.replace_all_uses_with(back)
        count += 1
    graph.graph.eliminate_dead_code(has_effect)
    return count


def _sizes(node: Node) -> list[int]:
    return [int(size) for size in node.meta["val"].shape]


def _is_one_row(node: Node) -> bool:
    rows: Any = node.args[0]
    is_own = all(isinstance(part, Node) and part.op == "get_attr" for part in node.args[1:3])
    return is_own and bool(rows.meta["val"].shape[0] == 1)


def _biased(graph: GraphModule, node: Node) -> tuple[Node, Node | None]:
    """Return the addition that alone reads a product, and its bias; the product itself and None if there is none."""
    at = node
    while len(at.users) == 1:
        user = next(iter(at.users))
        if user.target in RESHAPES:
            at = user
            continue
        is_sum = user.target is aten.add.Tensor and len(user.args) == 2 and not user.kwargs
        bias = next((a for a in user.args if a is not at), None) if is_sum else None
        if isinstance(bias, Node) and bias.op == "get_attr" and getattr(graph, str(bias.target)).ndim == 1:
            return user, bias
        break
    return node, None
