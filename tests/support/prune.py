"""Small models whose every layer has full attention, prompts for them, and what a prefill left in a cache."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

import twinrun as tr
from twinrun.models import zoo
from twinrun.models.load import load
from twinrun.models.model import Model

SCHEDULE = {1: 0.7, 2: 0.45}
LENGTH = 40
OWN = {
    "mistral": ("MistralConfig", {**zoo.BASE, "sliding_window": None}),
    "gemma": ("GemmaConfig", {**zoo.BASE, "head_dim": 16}),
}
PLAIN = ("llama", "qwen2", "qwen3", "mistral", "gemma")
"""Families that the oracle written out plainly covers."""
OTHERS = ("gpt2", "neox", "gpt-pre", "gptj", "phi", "olmo2", "granite", "cohere", "stablelm", "glm4", "opt")
"""Families held against their own eager attention under a mask of ours."""


def full(family: str, dtype: str = "float32", seed: int = 0, **settings: Any) -> Model:
    """A random model of a family, without windows."""
    if family not in OWN:
        return zoo.make(family, dtype, seed)
    torch.manual_seed(seed)
    name, given = OWN[family]
    build: Any = hf.AutoModelForCausalLM.from_config
    module = build(getattr(hf, name)(**{**given, **settings}), dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.dtype))
    return load(module)


def ids(length: int = LENGTH, seed: int = 0) -> list[int]:
    """Token ids without special ones."""
    found = torch.randint(5, 300, (length,), generator=torch.Generator().manual_seed(seed))
    return [int(i) for i in found]


def batch(rows: list[list[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a left-padded batch."""
    width = max(map(len, rows))
    told = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return told, mask


def prefill(p: tr.Pruned, rows: list[list[int]]) -> Any:
    """Run prompts through the model itself with pruning attached; returns the cache."""
    told, mask = batch(rows)
    with p.attached(), torch.inference_mode():
        return p.model.model(
            input_ids=told, attention_mask=mask, use_cache=True, logits_to_keep=1
        ).past_key_values


def cached(cache: Any) -> tuple[int, ...]:
    """Slots of every layer, as the tensors themselves say."""
    return tuple(int(layer.keys.shape[-2]) for layer in cache.layers)
