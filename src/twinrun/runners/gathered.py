"""Name a slot, or the filled slots, of all layers in one call: for caches whose layers lie in one block of memory.

A step names the slot to write and the filled slots of the keys and the values of every layer: four views a layer, a
microsecond each. From the block `[2 * layers, rows, heads, slots, head_dim]` one view and one `unbind` give them all.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from twinrun.runners.scratch import is_once
from twinrun.runners.views import has_effect

aten = torch.ops.aten
SLOTS = 2
"""Axis of slots in the keys of a layer."""


def block_of(buffers: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor whose parts `buffers` are, in order, `[count, *shape]`; None if they are no such parts."""
    first = buffers[0]
    size = first.numel() * first.element_size()
    for number, each in enumerate(buffers):
        is_next = each.data_ptr() == first.data_ptr() + number * size and each.is_contiguous()
        is_same = each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (is_next and is_same and each.shape == first.shape and each.dtype == first.dtype):
            return None
    return first.as_strided(
        (len(buffers), *first.shape), (first.numel(), *first.stride()), first.storage_offset()
    )


def gather(graph: GraphModule, count: int) -> int:
    """Read views of the last `count` inputs from one more input, the block of them; returns how many views went."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    numbers = {buffer: index for index, buffer in enumerate(inputs[-count:])}
    groups: dict[tuple[Any, Any], list[Node]] = {}
    for node in graph.graph.nodes:
        if node.target is aten.narrow.default and node.args[0] in numbers and _is_known(node.args, inputs):
            groups.setdefault((node.args[2], node.args[3]), []).append(node)
    with graph.graph.inserting_after(inputs[-1]):
        block = graph.graph.placeholder("block")
    last, gone = block, 0
    for (start, length), group in groups.items():
        with graph.graph.inserting_after(last):
            view = graph.graph.call_function(aten.narrow.default, (block, 1 + SLOTS, start, length))
        with graph.graph.inserting_after(view):
            parts = last = graph.graph.call_function(aten.unbind.int, (view,))
        for node in group:
            node.target, node.kwargs = operator.getitem, {}
            node.args = (parts, numbers[node.args[0]])
        gone += len(group)
    return gone


def write_pairs(graph: GraphModule) -> int:
    """Write keys and values of a layer by one copy where they lie behind each other in one product; returns how many.

    Adds an input, the block as `[layers, 2, rows, heads, slots, head_dim]`. `gather` and `settle` come before.
    """
    writes = {node.args[0]: node for node in graph.graph.nodes if node.target is aten.copy_.default}
    slots = {(n.args[0], n.args[1]): n for n in writes if n.target is operator.getitem}
    found = [
        (writes[keys], writes[slots[parts, index + 1]], parts.args[0], index // 2)
        for (parts, index), keys in slots.items()
        if index % 2 == 0 and (parts, index + 1) in slots
    ]
    found = [pair for pair in found if _is_pair(pair[0].args[1], pair[1].args[1])]
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    with graph.graph.inserting_after(inputs[-1]):
        pairs = graph.graph.placeholder("pairs")
    made: dict[Node, Node] = {}
    for keys, values, view, layer in found:
        if view not in made:
            with graph.graph.inserting_after(view):
                both = graph.graph.call_function(aten.narrow.default, (pairs, 2 + SLOTS, *view.args[2:]))
            with graph.graph.inserting_after(both):
                made[view] = graph.graph.call_function(aten.unbind.int, (both,))
        source, sizes, strides, offset = keys.args[1].args
        step = values.args[1].args[3] - offset
        with graph.graph.inserting_after(values.args[1]):
            new = graph.graph.call_function(
                aten.as_strided.default, (source, [2, *sizes], [step, *strides], offset)
            )
        new.meta["once"] = True
        with graph.graph.inserting_before(values):
            slot = graph.graph.call_function(operator.getitem, (made[view], layer))
        values.args = (slot, new)
        graph.graph.erase_node(keys)
    graph.graph.eliminate_dead_code(has_effect)
    return len(found)


def _is_pair(keys: Any, values: Any) -> bool:
    """Whether two nodes are views of equal form of one tensor that is there before the first step."""
    both = (keys, values)
    are_views = all(isinstance(n, Node) and n.target is aten.as_strided.default and is_once(n) for n in both)
    return are_views and keys.args[:3] == values.args[:3] and values.args[3] > keys.args[3]


def _is_known(args: Any, inputs: list[Node]) -> bool:
    """Whether a view is along the slots, from and to numbers that are there before the step begins."""
    return args[1] == SLOTS and all(isinstance(a, int) or a in inputs for a in args[2:4])
