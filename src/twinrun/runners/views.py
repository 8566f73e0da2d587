"""Merge chains of views in a captured graph: naming the same numbers by another shape costs one call, not four.

With one token a row, `[rows, 1, heads, width]` and `[rows, heads, 1, width]` are the same numbers in the same order, so
a view, a transpose and another view are one reshape. No number is computed otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten.reshape.default)
VIEWS = (*RESHAPES, aten.transpose.int, aten.unsqueeze.default)


def merge_views(graph: GraphModule) -> None:
    """Let each view that keeps the order of numbers read the tensor at the root of its chain."""
    made: dict[tuple[Node, tuple[int, ...]], Node] = {}
    for node in list(graph.graph.nodes):
        root = node
        while _keeps_order(root):
            root = root.args[0]
        if root is node:
            continue
        shape = _shape(node)
        if shape is None:
            continue
        known = root if _shape(root) == shape else made.setdefault((root, shape), node)
        if known is not node:
            node.replace_all_uses_with(known)
            continue
        node.target, node.args, node.kwargs = aten.reshape.default, (root, list(shape)), {}
    graph.graph.eliminate_dead_code(has_effect)


def has_effect(node: Node) -> bool:
    """Whether a node must stay although nobody reads it: inputs, the output, writes into the cache."""
    schema = getattr(node.target, "_schema", None)
    is_writer = "out" in node.kwargs or (schema is not None and schema.is_mutable)
    return node.op in ("placeholder", "output") or is_writer


def _shape(node: Node) -> tuple[int, ...] | None:
    """Shape of a node's tensor; None if a size is a symbol or it is no tensor."""
    value: Any = node.meta.get("val")
    sizes = tuple(getattr(value, "shape", (None,)))
    return sizes if all(type(size) is int for size in sizes) else None


def _keeps_order(node: Node) -> bool:
    """Whether a node names the numbers of its input, contiguous there, in the same order."""
    if node.op != "call_function" or node.target not in VIEWS or _shape(node) is None:
        return False
    source: Any = node.args[0]
    sizes = _shape(source)
    if sizes is None or not source.meta["val"].is_contiguous():
        return False
    if node.target is not aten.transpose.int:
        return True
    order: list[Any] = list(range(len(sizes)))
    first, second = (int(axis) % len(sizes) for axis in node.args[1:3])  # type: ignore[arg-type]  # fx types arguments loosely
    order[first], order[second] = order[second], order[first]
    moved = [axis for axis in order if sizes[axis] != 1]
    return moved == sorted(moved)
