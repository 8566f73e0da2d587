"""Small random models that look both ways, sharp enough that every position matters to every other."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from twinrun.models.model import Model

VOCAB = 53
MASK = 52
END = 51
PAD = 50


def masked_model(
    *,
    layers: int = 3,
    kv_heads: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    shifts: bool = False,
    context: int = 128,
) -> Model:
    """A bidirectional Llama with mask, end and pad ids, in float64 so that no tie is decided by rounding."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=context, initializer_range=0.3,
        bos_token_id=None, eos_token_id=END, pad_token_id=PAD, is_causal=False,
    )  # fmt: skip
    config.mask_token_id = MASK
    config.shifts_logits = shifts
    model = Model(LlamaForCausalLM(config).eval().to(dtype), name="masked")
    # A trained model is sure of some tokens and not of others: a few rows of the head are larger than the rest.
    with torch.no_grad():
        model.model.lm_head.weight[:8] *= 3
    return model


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random prompts without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, PAD, (n,), generator=generator).tolist() for n in lengths]
