"""The small GPT in float64, written out plainly, row by row and head by head. It shares no code with either library.

One row, no batch, no cache. `wrong` spoils one place, to prove that a test sees it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 1e-5


def plain_logits(
    weights: dict[str, Tensor],
    ids: list[int],
    *,
    heads: int,
    is_pre_norm: bool,
    first_position: int = 0,
    wrong: str = "",
) -> Tensor:
    """Logits `[tokens, vocab]` in float64. `wrong`: "positions", "scale", "future", "norm" or nothing."""
    w = {name.removeprefix("model."): tensor.detach().double() for name, tensor in weights.items()}
    shift = first_position + (1 if wrong == "positions" else 0)
    x = torch.stack(
        [w["embed_tokens.weight"][t] + w["embed_positions.weight"][i + shift] for i, t in enumerate(ids)]
    )
    layer = 0
    while f"layers.{layer}.up_proj.weight" in w:
        own = {
            n.removeprefix(f"layers.{layer}."): t for n, t in w.items() if n.startswith(f"layers.{layer}.")
        }
        first, second = "attention_norm", "feed_forward_norm"
        if is_pre_norm != (wrong == "norm"):
            x = x + _attention(own, _norm(x, own, first), heads, wrong)
            x = x + _feed_forward(own, _norm(x, own, second))
        else:
            x = _norm(x + _attention(own, x, heads, wrong), own, first)
            x = _norm(x + _feed_forward(own, x), own, second)
        layer += 1
    if is_pre_norm:
        x = _norm(x, w, "norm")
    return x @ w["lm_head.weight"].T


def _norm(x: Tensor, own: dict[str, Tensor], name: str) -> Tensor:
    rows = []
    for row in x:
        centred = row - row.sum() / len(row)
        spread = (centred * centred).sum() / len(row)
        rows.append(
            centred / math.sqrt(float(spread) + EPSILON) * own[f"{name}.weight"] + own[f"{name}.bias"]
        )
    return torch.stack(rows)


def _linear(x: Tensor, own: dict[str, Tensor], name: str) -> Tensor:
    return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]


def _feed_forward(own: dict[str, Tensor], x: Tensor) -> Tensor:
    wide = _linear(x, own, "up_proj")
    curve = 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    return _linear(curve, own, "down_proj")


def _attention(own: dict[str, Tensor], x: Tensor, heads: int, wrong: str) -> Tensor:
    length, width = x.shape
    size = width // heads
    query, key, value = (_linear(x, own, f"attention.{part}_proj") for part in "qkv")
    scale = math.sqrt(size) * (1.02 if wrong == "scale" else 1.0)
    mixed = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for row in range(length):
            seen = length if wrong == "future" else row + 1
            scores = [float(query[row, part] @ key[j, part]) / scale for j in range(seen)]
            chances = [math.exp(s - max(scores)) for s in scores]
            for j, chance in enumerate(chances):
                mixed[row, part] += chance / sum(chances) * value[j, part]
    return _linear(mixed, own, "attention.o_proj")
