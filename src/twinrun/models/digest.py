"""A digest of everything that decides what a model computes: every bit of its weights, and its config."""

from __future__ import annotations

import hashlib

import torch

from twinrun.models.model import Model


def model_digest(model: Model) -> str:
    """Return 16 hexadecimal digits that differ for models whose weights, precision or config differ in any bit.

    Where a checkpoint came from, and how its config says it was written, does not count.

    Cost: one pass of SHA-256 over the weights, a gigabyte or two a second.

    Example:
        >>> from twinrun.models.load import load
        >>> model_digest(load("builtin:expert")) == model_digest(load("builtin:amateur"))
        False
    """
    digest = hashlib.sha256()
    to_dict = getattr(model.config, "to_dict", None)
    config = dict(to_dict()) if callable(to_dict) else {}
    for key in ("_name_or_path", "transformers_version", "_attn_implementation", "architectures"):
        config.pop(key, None)
    digest.update(repr(sorted((key, str(value)) for key, value in config.items())).encode())
    for name, tensor in model.core.state_dict().items():
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()[:16]
