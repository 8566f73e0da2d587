"""Models of known shapes with random weights: speed and memory depend on the shape, not on what was learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

import twinrun as tr
from twinrun.errors import ConfigError, near_names
from twinrun.runners.forward import HiddenRows

HIDDEN_SCALE = 3.0
"""Makes logits of a random head about as wide as a trained model's are for an uncertain token."""

SHAPES: dict[str, dict[str, Any]] = {
    # The numbers of the config.json files of Qwen/Qwen2.5-0.5B and Qwen/Qwen2.5-7B.
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4_864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "quick": {
        "vocab_size": 1_024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}


def build(shape: str, *, device: str = "cpu", seed: int = 0, layers: int | None = None) -> tr.Model:
    """Return a Qwen2 of that shape in bfloat16, weights drawn on the device by transformers' own initialisation."""
    torch.manual_seed(seed)
    with torch.device(device):
        make: Any = AutoModelForCausalLM.from_config
        module: nn.Module = make(qwen_config(shape, layers), dtype=torch.bfloat16)
    model = tr.load(module.eval())
    model.name = f"{shape}, random weights, seed {seed}"
    return model


def qwen_config(shape: str, layers: int | None = None) -> Qwen2Config:
    """Return the config of a shape, with another number of layers if given."""
    if shape not in SHAPES:
        raise ConfigError(f"no shape {shape!r}; choose from {', '.join(SHAPES)}.{near_names(shape, SHAPES)}")
    sizes = {**SHAPES[shape], **({} if layers is None else {"num_hidden_layers": layers})}
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    return Qwen2Config(**sizes, rope_parameters=rope, max_position_embeddings=32_768)


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """Return token ids drawn evenly from the vocabulary."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (count,), generator=source).tolist()


class Pair:
    """Final hidden states and heads of a model p and of a model q that has drifted from it, as streams of logits.

    `distance` is the drift: noise on head and hidden states of q, in units of their own standard deviation.
    """

    def __init__(self, shape: str, positions: int, distance: float, *, device: str, seed: int) -> None:
        models = [build(shape, device=device, seed=seed, layers=1) for _ in range(2)]
        heads = [_weight_of_head(model) for model in models]
        source = torch.Generator(device).manual_seed(seed + 1)

        def drawn(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=source, device=like.device, dtype=like.dtype)

        with torch.no_grad():
            heads[1].add_(drawn(heads[1]), alpha=distance * heads[1].float().std().item())
            hidden = HIDDEN_SCALE * drawn(heads[0].new_empty(positions, heads[0].shape[1]))
            self.hidden = (hidden, hidden + HIDDEN_SCALE * distance * drawn(hidden))
        self.heads = tuple(heads)
        self.p, self.q = (HiddenRows(model, h) for model, h in zip(models, self.hidden, strict=True))


def _weight_of_head(model: tr.Model) -> Tensor:
    weight = getattr(model.layout.head, "weight", None)
    assert isinstance(weight, Tensor)
    return weight
