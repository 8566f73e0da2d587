"""Bytes of weights that one token reads, and which weights they are."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from twinrun.bench.cache import storages
from twinrun.errors import TwinrunError
from twinrun.models.model import Model
from twinrun.models.raised import refuse_packed

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
    head = model.layout.head
    spared = set(storages([list(table.parameters()) for table in tables]))
    spared -= set(storages(list(head.parameters()))) if head is not None else set()
    held = [*model.core.parameters(), *(b for b in model.core.buffers() if b.numel() > 1)]
    return sum(size for place, size in storages(held).items() if place not in spared)


def is_packed(model: Model) -> bool:
    """Whether weights are stored in a packed format, whose bytes cannot be seen from here."""
    try:
        refuse_packed(model.core)
    except TwinrunError:
        return True
    return False


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
        try:
            flat = tensor.detach().reshape(-1)
            count = max(1, SAMPLED // max(1, tensor.dtype.itemsize))
            for part in (flat[:count], flat[-count:]):
                found.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        except (RuntimeError, TypeError, NotImplementedError):  # a packed format without plain values
            found.update(type(tensor).__name__.encode())
    return found.hexdigest()[:16]
