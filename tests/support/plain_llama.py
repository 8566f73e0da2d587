"""A decoder of the Llama kind in float64, written out plainly. It shares no code with either library.

Covers RMSNorm, rotary embedding, grouped-query attention, SwiGLU, with biases (Qwen2) and norms on queries
and keys (Qwen3) where the weights have them. One row, no batch, no cache.
`wrong` spoils one place, to prove that a test sees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """The numbers that weights do not tell."""

    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    epsilon: float


def plain_logits(
    weights: dict[str, Tensor], sizes: Sizes, ids: list[int], wrong: dict[str, float] | None = None
) -> Tensor:
    """Logits `[tokens, vocab]` in float64. `wrong` multiplies "scores", "values", "up" or "head"."""
    w = {name: tensor.detach().double() for name, tensor in weights.items()}
    factor = {"scores": 1.0, "values": 1.0, "up": 1.0, "head": 1.0, **(wrong or {})}
    x = w["model.embed_tokens.weight"][ids]
    layer = 0
    while f"model.layers.{layer}.input_layernorm.weight" in w:
        own = {name.split(f"layers.{layer}.")[1]: t for name, t in w.items() if f".layers.{layer}." in name}
        x = x + _attention(own, sizes, _norm(x, own["input_layernorm.weight"], sizes.epsilon), factor)
        h = _norm(x, own["post_attention_layernorm.weight"], sizes.epsilon)
        gate, up = h @ own["mlp.gate_proj.weight"].T, h @ own["mlp.up_proj.weight"].T
        x = x + (gate / (1 + (-gate).exp()) * up * factor["up"]) @ own["mlp.down_proj.weight"].T
        layer += 1
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return _norm(x, w["model.norm.weight"], sizes.epsilon) @ head.T * factor["head"]


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + epsilon).sqrt() * weight


def _attention(own: dict[str, Tensor], sizes: Sizes, x: Tensor, factor: dict[str, float]) -> Tensor:
    length = x.shape[0]
    query = _heads(own, "q", x, sizes.heads, sizes)
    key, value = _heads(own, "k", x, sizes.kv_heads, sizes), _heads(own, "v", x, sizes.kv_heads, sizes)
    query, key = _rotate(query, sizes.theta), _rotate(key, sizes.theta)
    out = torch.zeros(length, sizes.heads, sizes.head_dim, dtype=torch.float64)
    for head in range(sizes.heads):
        shared = head * sizes.kv_heads // sizes.heads
        scores = query[:, head] @ key[:, shared].T / sizes.head_dim**0.5 * factor["scores"]
        for row in range(length):
            seen = scores[row, : row + 1]
            chance = (seen - seen.max()).exp()
            out[row, head] = (chance / chance.sum()) @ value[: row + 1, shared] * factor["values"]
    return out.flatten(1) @ own["self_attn.o_proj.weight"].T


def _heads(own: dict[str, Tensor], which: str, x: Tensor, count: int, sizes: Sizes) -> Tensor:
    """Project to `[tokens, heads, head_dim]`."""
    flat = x @ own[f"self_attn.{which}_proj.weight"].T
    if f"self_attn.{which}_proj.bias" in own:
        flat = flat + own[f"self_attn.{which}_proj.bias"]
    split = flat.reshape(len(x), count, sizes.head_dim)
    norm = own.get(f"self_attn.{which}_norm.weight")
    return split if norm is None else _norm(split, norm, sizes.epsilon)


def _rotate(x: Tensor, theta: float) -> Tensor:
    """Turn pairs (i, i + half) by position times frequency. Frequencies are float32 in every such model."""
    length, _, dim = x.shape
    frequency = (1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)).double()
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
