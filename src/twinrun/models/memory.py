"""How much memory there is, and how much a raised copy of a model would take."""

from __future__ import annotations

import psutil
import torch
from torch import nn


def free_bytes(device: torch.device) -> int:
    """Memory that a new tensor on `device` can have now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def raised_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a whole copy of the floating-point parameters in `dtype`."""
    return sum(p.numel() for p in module.parameters() if p.is_floating_point()) * dtype.itemsize
