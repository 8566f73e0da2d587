"""Which model a file was made for: a short fingerprint of its config and weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from twinrun.models.model import Model

VALUES = 64
"""Values looked at in each weight, evenly spaced."""
_VOLATILE = frozenset(
    {"dtype", "torch_dtype", "use_cache", "transformers_version", "architectures", "quantization_config"}
    | {"output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"}
)


def model_fingerprint(model: Model) -> str:
    """Return 16 hexadecimal digits that name a model: its class, config, weight names, shapes and sampled values.

    Values are rounded to bfloat16 first, so a checkpoint opened in float32 and in bfloat16 is the same model.
    Ids of special tokens, names and run-time options are left out. A quantised copy is another model. `VALUES` values
    of each weight are looked at: an edit of few single weights can go unseen, any step of training cannot.

    Cost: reads a few numbers of each weight.

    Example:
        >>> m = load("builtin:amateur", dtype="float32")
        >>> model_fingerprint(m) == model_fingerprint(load("builtin:amateur", dtype="bfloat16"))
        True
    """
    digest = hashlib.sha256(type(model.core).__name__.encode())
    digest.update(json.dumps(_lasting(model.config), sort_keys=True, default=str).encode())
    for name, weight in model.core.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(_sampled(weight))
    return digest.hexdigest()[:16]


def hidden_width(model: Model) -> int:
    """Numbers in one token's hidden state."""
    width = getattr(model.config, "hidden_size", None)
    if isinstance(width, int):
        return width
    table: Any = getattr(model.core, "get_input_embeddings", lambda: None)()
    return int(table.embedding_dim)


def _lasting(config: Any) -> dict[str, Any]:
    """What of a config changes the function."""
    if not hasattr(config, "to_dict"):
        return {}
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _VOLATILE and not key.startswith("_") and not key.endswith("_token_id")
    }


def _sampled(weight: nn.Parameter) -> bytes:
    flat = weight.detach().reshape(-1)
    at = torch.linspace(0, max(flat.numel() - 1, 0), min(VALUES, flat.numel()), dtype=torch.float64)
    picked = flat[at.long().to(flat.device)].cpu()
    if picked.is_floating_point():
        picked = picked.to(torch.bfloat16)
    return picked.contiguous().view(torch.uint8).numpy().tobytes()
