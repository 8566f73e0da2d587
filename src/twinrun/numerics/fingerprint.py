"""Short fingerprints of activations: what is left of a row of any width is 17 numbers, enough to measure a difference.

A fixed random projection keeps the length of every difference to about 20 % (Johnson and Lindenstrauss, 1984), so
two runs can be compared module by module without keeping either run's activations.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

DIMS = 16
"""Projected numbers a row. The length of a difference is off by a factor of 1 +- sqrt(1 / (2 * 16)) = 18 %."""
SEED = 20_260_101
BLOCK_BYTES = 32 * 2**20
"""Rows are widened to float64 in blocks of this size."""


def fingerprints(rows: Tensor) -> Tensor:
    """Project rows to `DIMS` signed sums and append their length.

    Args:
        rows: `[..., width]`, any floating dtype or integers; not changed.

    Returns:
        `[..., DIMS + 1]` float64 on the device of `rows`. Equal rows give equal fingerprints up to the float64
        rounding of one product; a NaN or infinity anywhere in a row makes all of its fingerprint infinite.

    Cost: `2 * DIMS * width` flops a row; `width * DIMS` float64 for each width seen.

    Example:
        >>> a = torch.ones(2, 8)
        >>> difference(fingerprints(a), fingerprints(a))
        tensor([0., 0.], dtype=torch.float64)
    """
    flat = rows.reshape(-1, rows.shape[-1])
    signs = _signs(flat.shape[-1], flat.device)
    step = max(1, BLOCK_BYTES // (8 * max(1, flat.shape[-1])))
    parts = [_block(flat[i : i + step].double(), signs) for i in range(0, flat.shape[0], step)]
    if not parts:
        parts = [flat.new_zeros(0, DIMS + 1, dtype=torch.float64)]
    found = torch.cat(parts) if len(parts) > 1 else parts[0]
    return found.reshape(*rows.shape[:-1], DIMS + 1)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Length of a - b for each row, relative to the row of `b` or to the median row of `b`, whichever is longer.

    Args:
        a: `[rows, DIMS + 1]` fingerprints.
        b: the same shape.

    Returns:
        `[rows]` float64, relative (1 is as large as the row itself); infinite where either side is not finite.
    """
    length = b[:, DIMS]
    finite = length[torch.isfinite(length)]
    typical = float(finite.median()) if finite.numel() else 0.0
    gap = (a[:, :DIMS] - b[:, :DIMS]).square().sum(-1).sqrt()
    relative = gap / length.clamp_min(max(typical, 1e-300))
    relative = torch.where(gap == 0, 0.0, relative)
    broken = ~(torch.isfinite(a).all(-1) & torch.isfinite(b).all(-1))
    return torch.where(broken, torch.inf, relative)


def one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine of the angle between rows, from lengths and the length of the difference; at least 0."""
    gap = (a[:, :DIMS] - b[:, :DIMS]).square().sum(-1)
    product = (a[:, DIMS] * b[:, DIMS]).clamp_min(1e-300)
    return ((gap - (a[:, DIMS] - b[:, DIMS]).square()) / (2 * product)).clamp(0, 2)


def _block(rows: Tensor, signs: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    # NOTE: one NaN or infinity in a row reaches all of its sums, so all of them become infinite here.
    return torch.cat([rows @ signs, length], dim=-1).nan_to_num_(torch.inf, torch.inf, torch.inf)


@lru_cache(maxsize=64)
def _signs(width: int, device: torch.device) -> Tensor:
    """Return `[width, DIMS]` of +-1/sqrt(DIMS), the same on every machine."""
    generator = torch.Generator().manual_seed(SEED + width)
    bits = torch.randint(0, 2, (width, DIMS), generator=generator, dtype=torch.int8)
    signs: Tensor = (bits.double() * 2 - 1) / math.sqrt(DIMS)
    return signs.to(device)
