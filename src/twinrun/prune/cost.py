"""What a model costs per prompt token, counted by torch: the measure for how small a scorer must be."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from twinrun.models.model import Model

MAX_SHARE = 0.01
"""Scorers must cost less than this share of the model (arXiv:2504.04514, section 3)."""
TOKENS = 64


def model_flops_per_token(model: Model) -> float:
    """Operations of one prompt token in the model's decoder, counted in a forward of 64 tokens.

    A multiplication and an addition are two. Short on purpose: longer prompts add attention, so a scorer's share of
    this is the largest it will ever be. The head runs for the last token only, where the model can leave it out
    for the others.

    Cost: one forward of 64 tokens (less where the context is shorter).
    """
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    tokens = min(TOKENS, model.max_context or TOKENS)
    ids = (torch.arange(tokens, device=model.device) * 7 + 3).remainder(model.vocab_size)[None]
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in model.accepts else {}
    with FlopCounterMode(display=False, custom_mapping={fused: _attention}) as counter, torch.no_grad():
        model.core(input_ids=ids, use_cache=False, **options)
    return float(counter.get_total_flops()) / tokens


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # unannotated there
