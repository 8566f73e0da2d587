"""Tell models apart without reading all of their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

SAMPLES = 16


def identity(core: nn.Module | None) -> dict[str, Any]:
    """Class, number of parameters, layers and vocabulary, and a hash of shapes and a few values of every tensor.

    Cost: a few numbers of each tensor are read.
    """
    if core is None:
        return {"class": None, "parameters": None, "vocab": None, "weights": None}
    digest = hashlib.sha256()
    count = 0
    for name, tensor in core.named_parameters():
        count += tensor.numel()
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(flat[::step][:SAMPLES].to(torch.bfloat16).float().cpu().numpy().tobytes())
    get = getattr(core, "get_input_embeddings", None)
    table = get() if callable(get) else None
    return {
        "class": type(core).__name__,
        "parameters": count,
        "vocab": getattr(table, "num_embeddings", None),
        "weights": digest.hexdigest()[:16],
    }


def why_different(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """None if two identities are of one model, else what differs. Weights are compared after rounding to bfloat16."""
    names = {
        "class": "model class",
        "parameters": "number of parameters",
        "vocab": "vocabulary",
        "weights": "weights",
    }
    for key, word in names.items():
        if a.get(key) != b.get(key):
            return f"{word}: {a.get(key)} and {b.get(key)}"
    return None
