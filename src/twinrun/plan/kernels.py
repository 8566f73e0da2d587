"""What an operator holds while it runs, which the meta device cannot show; above all fused attention's own tiles.

The processor's attention kernel (torch 2.13, FlashAttentionKernel.cpp) works on tiles of 32, 64 or 256 queries by 512
keys, one set of tiles a thread; for bfloat16, on processors with matrix instructions for it, it packs a copy of keys
and values. Nothing of it is `[tokens, tokens]`. benchmarks/memory_plan.py holds the formulas against measured peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

_MATH = 0
"""torch's number for attention in plain steps."""
_SAFE_SOFTMAX = torch.ops.aten._safe_softmax.default
KEY_TILE = 512
PROBE_TOKENS = 3


def temporary_bytes(operator: Any, inputs: Sequence[Any]) -> int:
    """Bytes that an operator holds beside its result: inputs cast to a common precision, a mask of rows without keys.

    The processor's pointwise operators copy an input whose precision differs from the common one.
    """
    if operator is _SAFE_SOFTMAX:
        return int(inputs[0].numel())
    if torch.Tag.pointwise not in operator.tags:
        return 0
    tensors = [t for t in inputs if isinstance(t, Tensor) and t.ndim > 0]
    if len({t.dtype for t in tensors}) < 2:
        return 0
    common = reduce(torch.promote_types, [t.dtype for t in tensors])
    return sum(t.numel() * common.itemsize for t in tensors if t.dtype != common)


def uses_fused_kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, gqa: bool, device: str
) -> bool:
    """Whether torch runs these in one kernel; the processor's own chooser is asked, with the same heads and widths.

    On CUDA the flash and the memory-efficient kernel together take every head width that models have.
    """
    if device == "cuda":
        return query.shape[1] == key.shape[1] or gqa
    few = min(PROBE_TOKENS, query.shape[2])
    q, k, v = (
        torch.empty(1, t.shape[1], few, t.shape[3], dtype=t.dtype, device="cpu") for t in (query, key, value)
    )
    m = None if mask is None else torch.ones(1, 1, few, few, dtype=torch.bool, device="cpu")
    return int(torch._fused_sdp_choice(q, k, v, attn_mask=m, enable_gqa=gqa)) != _MATH


def attention_output(query: Tensor, value: Tensor) -> Tensor:
    """The output as the kernels lay it out: `[batch, heads, tokens, width]`, a view of tokens before heads."""
    rows, heads, tokens, _ = query.shape
    return query.new_empty(rows, tokens, heads, value.shape[3]).transpose(1, 2)


def attention_scratch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, device: str) -> int:
    """Bytes alive inside the kernel: the output, the log-sum-exp, a mask in numbers, tiles and packed copies."""
    rows, heads, tokens, width = query.shape
    size = query.dtype.itemsize
    output = rows * heads * tokens * value.shape[3] * size
    shared = output + rows * heads * tokens * 4 + _mask_bytes(mask, size)
    return shared if device == "cuda" else shared + _tile_bytes(query, key, width)


def _mask_bytes(mask: Tensor | None, size: int) -> int:
    """A mask of truth values is turned into numbers of the queries' precision first."""
    if mask is None or mask.dtype != torch.bool:
        return 0
    return mask.numel() * size


def _tile_bytes(query: Tensor, key: Tensor, width: int) -> int:
    tokens, keys, size = query.shape[2], key.shape[2], query.dtype.itemsize
    q_tile = min(256 if tokens >= 768 else 64 if tokens >= 192 else 32, tokens)
    k_tile = min(KEY_TILE, keys)
    threads = torch.get_num_threads()
    tiles = threads * 4 * (q_tile * k_tile + 2 * q_tile + q_tile * width)
    tiles += threads * q_tile * k_tile * size if size == 2 else 0
    return tiles + (_packed_bytes(query, key, q_tile) if _packs(query, key, q_tile, threads) else 0)


def _packs(query: Tensor, key: Tensor, q_tile: int, threads: int) -> bool:
    """The kernel's own rule: packing must be paid back by at least four times as much multiplying a thread."""
    rows, heads, tokens, _ = query.shape
    able = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if query.dtype != torch.bfloat16 or not able or min(tokens, key.shape[2]) < 64:
        return False
    tiles = -(-rows * heads * -(-tokens // q_tile) // threads)
    return tiles * q_tile >= 4 * rows * key.shape[1]


def _packed_bytes(query: Tensor, key: Tensor, q_tile: int) -> int:
    rows, heads, keys, width = key.shape
    return 2 * rows * heads * keys * width * 2 + torch.get_num_threads() * min(KEY_TILE, keys) * width * 2
