"""What this machine can do at best, measured in the run that is held against it: matrix products and reading memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from twinrun.bench.hardware import last_level_cache_bytes
from twinrun.bench.timing import wait_for_cuda
from twinrun.models.memory import free_bytes
from twinrun.numerics.precision import dtype_name

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
"""Widths of the square matrices; the fastest counts."""
TRIES, ENOUGH_SECONDS = 5, 1.0
READ_FLOOR = 256 * 2**20
"""Bytes read where the last-level cache is small or unknown."""
ROW_BYTES, PIECE_BYTES = 4096, 32 * 2**20
DEPTH = 256
"""Rows of the matrix that a vector is multiplied with: long rows are what a CPU reads fastest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """The fastest square matrix product found."""

    dtype: str
    flops_per_second: float
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """The fastest pass over a buffer found."""

    num_bytes: int
    bytes_per_second: float
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Both ceilings, and the size of the cache that decides which reads come from memory."""

    matmul: dict[str, Matmul]
    memory_read: Read
    cache_read: Read | None
    """A pass over as many bytes as the weights have; None where these do not fit into the cache."""
    last_level_cache_bytes: int | None
    beyond_cache: bool
    """Whether the buffer of `memory_read` is larger than the cache."""
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def measure_ceilings(
    dtypes: set[torch.dtype], device: torch.device, weight_bytes: int, *, tries: int = TRIES
) -> Ceilings:
    """Measure both ceilings with the threads that are set now.

    Matrix products: square, in each dtype, a few widths, the best of `tries`. Reading: a float32 sum, a matrix-vector
    and a vector-matrix product over a buffer twice as large as the last-level cache (at least 256 MiB, at most a
    quarter of free memory), on a CPU in pieces of 32 MiB, the best piece of `tries` passes; then the same over
    `weight_bytes`, if these fit into the cache.

    Args:
        dtypes: floating-point precisions of the models.
        device: where they run.
        weight_bytes: bytes of weights that one token reads.
        tries: passes of each kind, at least 1.

    Cost: two to five seconds on a CPU, and the buffer.
    """
    cache = last_level_cache_bytes(device)
    wanted = max(READ_FLOOR, 2 * (cache or 0))
    size = min(wanted, max(2**20, free_bytes(device) // 4))
    fits = cache is not None and 0 < weight_bytes <= cache
    return Ceilings(
        matmul={dtype_name(d): _matmul(d, device, tries) for d in sorted(dtypes, key=str)},
        memory_read=_read(size, device, tries),
        cache_read=_read(weight_bytes, device, tries if weight_bytes > PIECE_BYTES else 4 * tries)
        if fits
        else None,
        last_level_cache_bytes=cache,
        beyond_cache=cache is not None and size > cache,
        device=str(device),
        threads=torch.get_num_threads(),
    )


def _matmul(dtype: torch.dtype, device: torch.device, tries: int) -> Matmul:
    found = []
    for width in SIZES[device.type if device.type in SIZES else "cpu"]:
        a = torch.rand(width, width, device=device).to(dtype)
        out = torch.empty_like(a)
        seconds = _best(lambda a=a, out=out: torch.mm(a, a.T, out=out), tries)  # type: ignore[misc]  # a lambda's default has no type
        found.append(Matmul(dtype=dtype_name(dtype), flops_per_second=2 * width**3 / seconds, width=width))
    return max(found, key=lambda m: m.flops_per_second)


def _read(num_bytes: int, device: torch.device, tries: int) -> Read:
    """Time three ways of reading every byte of a buffer once; whole rows of 1,024 floats, or all of them in 256 rows.

    On a CPU each piece of the buffer is timed by itself, in order, so that the fastest is not one that another
    process cut into; what was read before it lies a whole buffer back.
    """
    rows = max(1, num_bytes // ROW_BYTES)
    matrix, vector = torch.ones(rows, 1024, device=device), torch.ones(1024, device=device)
    short = torch.ones(DEPTH, device=device)
    pieces = [matrix] if device.type == "cuda" else list(torch.split(matrix, PIECE_BYTES // ROW_BYTES))
    ways: dict[str, Callable[[Tensor], object]] = {
        "sum": lambda piece: piece.sum(),
        "matrix-vector product": lambda piece: piece @ vector,
        "vector-matrix product": lambda piece: short @ piece.view(DEPTH, -1),
    }
    rates = {
        name: max(
            len(piece) * ROW_BYTES / seconds
            for piece, seconds in zip(pieces, _best_of_each(way, pieces, tries), strict=True)
        )
        for name, way in ways.items()
    }
    how = max(rates, key=lambda name: rates[name])
    return Read(num_bytes=rows * ROW_BYTES, bytes_per_second=rates[how], how=how)


def _best_of_each(call: Callable[[Tensor], object], pieces: list[Tensor], tries: int) -> list[float]:
    """Least seconds of a call on each piece, over whole passes in order."""
    best = [float("inf")] * len(pieces)
    for _ in range(tries):
        for i, piece in enumerate(pieces):
            best[i] = min(best[i], _best(lambda piece=piece: call(piece), 1, warm=False))  # type: ignore[misc]  # a lambda's default has no type
    return best


def _best(call: Callable[[], object], tries: int, *, warm: bool = True) -> float:
    """Least seconds of a call, after one untimed if `warm`; stops early when enough time went by."""
    with torch.inference_mode():
        if warm:
            call()
        wait_for_cuda()
        best, spent = float("inf"), 0.0
        for _ in range(tries):
            began = time.perf_counter()
            call()
            wait_for_cuda()
            seconds = time.perf_counter() - began
            best, spent = min(best, seconds), spent + seconds
            if spent > ENOUGH_SECONDS:
                break
    return max(best, 1e-9)
