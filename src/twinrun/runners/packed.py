"""Products of one row as matrix times vector, on weights that lie the way they are read.

On a processor torch sends a bfloat16 product to oneDNN, which sorts the weights anew at every call; for one row that
costs more than the product itself. torch's own matrix-vector kernel reads each weight once and accumulates in float32.
It wants `[out, in]`: weights stored the other way round (GPT-2's) are copied once, and again when they have changed. In
float32 a matrix times a vector is a sixth faster than the same product as a matrix of one row where weights come from
a cache; where they come from memory it is not (GPT-2), so nothing is copied there, but for one matrix: a large head on
a narrow vector. Its rows are short, and as `[in, out]` it is read 8 to 15 per cent faster.

Int8 weights (`twinrun.models.int8`) have a kernel of their own for a row. Around the products, what would be allocated
and named anew in every step is made once a run (`scratch.py`, `gathered.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from twinrun.runners.captured import CapturedStep, close
from twinrun.runners.flat import Flat, flatten, simplify
from twinrun.runners.gathered import block_of, gather, write_pairs
from twinrun.runners.gelu import fuse_gelu
from twinrun.runners.int8_rows import rewrite_int8
from twinrun.runners.peephole import lay_flat, name_parts, stack
from twinrun.runners.scratch import add_in_place, add_products, settle
from twinrun.runners.views import merge_views

aten = torch.ops.aten
HALF = (torch.bfloat16, torch.float16)
TURN_BYTES, TURN_WIDTH = 64_000_000, 1024
"""A float32 matrix `[out, in]` from so many bytes on, with rows no longer than this, is copied as `[in, out]`."""


def turned(weight: Tensor) -> Tensor:
    """Return `[in, out]` as `[out, in]`, contiguous."""
    return weight.t().contiguous()


class PackedStep(CapturedStep):
    """Forwards of one run by a captured graph with its products of one row rewritten. They round elsewhere.

    On a CUDA device and for several rows the graph stays as it was captured.
    """

    name = "packed"
    _block: Tensor | None = None

    def _open(self, cache: Any, mask: Tensor | None) -> None:
        super()._open(cache, mask)
        self._block = (
            block_of(self._buffers) if self.why is None and self._model.device.type == "cpu" else None
        )
        if self._block is not None:
            self._buffers += [self._block, self._block.view(-1, 2, *self._block.shape[1:])]
            self._key = (self._key, "block")

    def written(self, graph: GraphModule) -> Flat:
        """Rewrite the products and return the flat function."""
        if self._model.device.type == "cpu":
            simplify(graph)
            fuse_gelu(graph)
            rewrite(graph)
            rewrite_int8(graph)
            lay_flat(graph)
            merge_views(graph)
            stack(graph)
            name_parts(graph)
            if self._block is not None:
                gather(graph, 2 * len(self._layers))
            add_products(graph)
            add_in_place(graph)
            settle(graph)
            if self._block is not None:
                write_pairs(graph)
        return flatten(graph, self._model.core)

    def agrees(self, got: Tensor, want: Tensor) -> bool:
        """Whether a step is the model's own forward up to rounding."""
        return close(got, want)


def rewrite(graph: GraphModule) -> int:
    """Turn products of one row into matrix times vector; returns how many."""
    count = 0
    for node in list(graph.graph.nodes):
        found = _product(node)
        if found is None:
            continue
        rows, weight, bias, is_turned = found
        value: Any = node.meta["val"]
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function
            is_wide = bias is None and not is_turned and _is_wide(rows, value)
            if is_turned or is_wide:
                weight = new(turned, (weight,))
            vector = new(aten.reshape.default, (rows, [1, -1] if is_wide else [-1]))
            vector.meta["val"] = rows.meta["val"].reshape([1, -1] if is_wide else [-1])
            if is_wide:
                product = new(aten.mm.default, (vector, weight))
            else:
                parts = (weight, vector) if bias is None else (bias, weight, vector)
                product = new(aten.mv.default if bias is None else aten.addmv.default, parts)
            product.meta["val"] = value.reshape([1, -1] if is_wide else [-1])
            back = new(aten.reshape.default, (product, [int(size) for size in value.shape]))
            back.meta["val"] = value
            node.replace_all_uses_with(back)
        graph.graph.erase_node(node)
        count += 1
    return count


def _is_wide(rows: Node, result: Any) -> bool:
    """Whether a float32 product is a large head on a narrow vector."""
    width = rows.meta["val"].shape[-1]
    num_bytes = width * result.numel() * result.element_size()
    return result.dtype == torch.float32 and width <= TURN_WIDTH and bool(num_bytes >= TURN_BYTES)


def _product(node: Node) -> tuple[Node, Node, Node | None, bool] | None:
    """Input, weight, bias, and whether the weight is `[in, out]`; None if the node is no such product of one row."""
    args: Any = node.args
    if node.op != "call_function" or node.kwargs:
        return None
    if node.target is aten.linear.default:
        found = (args[0], args[1], args[2] if len(args) > 2 else None, False)
    elif node.target is aten.addmm.default:
        found = (args[1], args[2], args[0], True)
    else:
        return None
    rows, weight = found[:2]
    value = rows.meta["val"]
    is_wanted = value.dtype in HALF or (value.dtype == torch.float32 and not found[3])
    is_one_row = type(value.numel()) is int and value.numel() == value.shape[-1]
    return found if weight.op == "get_attr" and is_wanted and is_one_row else None
