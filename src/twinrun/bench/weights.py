"""Bytes of weights that one token reads, and which weights they are."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from twinrun.models.model import Model

SAMPLED = 256
"""Bytes of each end of a tensor that go into the digest."""


def read_bytes(model: Model) -> int:
    """Bytes of weights that the forward of one token reads: all but embedding tables, of which it reads one row.

    A table that the head shares is read whole. A storage counts once. In a mixture of experts a token reads
    fewer: `is_routed` says so.

    Example:
        >>> 0 < read_bytes(load("builtin:amateur")) < 3_000_000
        True
    """
    tables = [part for part in model.core.modules() if isinstance(part, nn.Embedding)]
    spared = {_place(p) for table in tables for p in table.parameters()}
    head = model.layout.head
    spared -= {_place(p) for p in head.parameters()} if head is not None else set()
    return sum(size for place, size in _storages(model.core).items() if place not in spared)


def is_routed(model: Model) -> bool:
    """Whether routers choose which weights a token reads."""
    return bool(model.layout.routers)


def digest(model: Model) -> str:
    """Name the weights: SHA-256 of every tensor's name, shape, precision and both ends.

    It tells one checkpoint from another. A change in the middle of a large tensor goes unseen.

    Cost: reads at most half a kilobyte a tensor.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.core.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        count = max(1, SAMPLED // max(1, tensor.dtype.itemsize))
        for part in (flat[:count], flat[-count:]):
            found.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _storages(module: nn.Module) -> dict[tuple[str, int], int]:
    parameters = {_place(p): p.untyped_storage().nbytes() for p in module.parameters()}
    packed = {_place(b): b.untyped_storage().nbytes() for b in module.buffers() if b.numel() > 1}
    return packed | parameters


def _place(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()
