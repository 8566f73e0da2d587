"""What must be the same before and after something is attached to a model: bits, hooks, settings."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """Hash of every parameter and buffer, number of hooks, names of attributes, settings of every config."""
    digest = hashlib.sha256()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    parts = list(module.modules())
    configs = {id(c): c for c in (getattr(part, "config", None) for part in parts) if c is not None}
    return {
        "bits": digest.hexdigest(),
        "identities": [id(p) for p in module.parameters()],
        "hooks": sum(len(getattr(part, kind)) for part in parts for kind in HOOKS),
        "attributes": [sorted(vars(part)) for part in parts],
        "settings": [sorted((k, repr(v)) for k, v in vars(c).items()) for c in configs.values()],
    }
