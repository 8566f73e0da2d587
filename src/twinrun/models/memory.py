"""How much memory there is, how much weights need, and the refusal when the one exceeds the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch

from twinrun.errors import OutOfMemoryError
from twinrun.numerics.units import show_bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint or a model: values, bytes a value, whether a change of precision reaches it."""

    numel: int
    itemsize: int
    is_float: bool


def free_bytes(device: torch.device) -> int:
    """Memory that a new tensor on `device` can have now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def weight_bytes(tensors: Iterable[Stored], dtype: torch.dtype | None = None) -> int:
    """Bytes of tensors once they are in memory, floating-point ones in `dtype` (None keeps each as it is).

    Example:
        >>> weight_bytes([Stored(10, 4, True), Stored(3, 8, False)], torch.bfloat16)
        44
    """
    return sum(
        t.numel * (dtype.itemsize if dtype is not None and t.is_float else t.itemsize) for t in tensors
    )


def refuse_oversize(name: str, need: int, device: torch.device) -> None:
    """Refuse a model whose weights cannot fit.

    Raises:
        OutOfMemoryError: `need` bytes are more than are free on `device` now.
    """
    free = free_bytes(device)
    if need > free:
        raise OutOfMemoryError(
            f"{name} needs {show_bytes(need)} for its weights alone and {show_bytes(free)} are free on {device}; "
            "choose a half precision (dtype='bfloat16') or a larger machine (`twinrun memory` plans one)"
        )
