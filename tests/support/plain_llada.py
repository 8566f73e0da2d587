"""A LLaDA forward in float64, written out from the names in its checkpoint. It shares no code with either library.

Pre-norm blocks, rotary embedding by halves, attention over every real token both ways, gated feed-forward whose gate
is `ff_proj`. `wrong` spoils one place, to prove that a test sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def plain_llada_logits(
    weights: Mapping[str, Tensor], fields: Mapping[str, Any], ids: list[int], wrong: str = ""
) -> Tensor:
    """Logits `[tokens, vocab]`. `wrong` is "causal", "gate" (gate and up exchanged) or "theta"."""
    w = {name.removeprefix("model.transformer."): t.detach().double() for name, t in weights.items()}
    theta = fields["rope_theta"] * (2 if wrong == "theta" else 1)
    x = w["wte.weight"][ids]
    for layer in range(fields["n_layers"]):
        own = {
            k.removeprefix(f"blocks.{layer}."): t for k, t in w.items() if k.startswith(f"blocks.{layer}.")
        }
        x = x + _attend(own, fields, _norm(x, own["attn_norm.weight"], fields), theta, wrong == "causal")
        h = _norm(x, own["ff_norm.weight"], fields)
        gate, up = h @ own["ff_proj.weight"].T, h @ own["up_proj.weight"].T
        if wrong == "gate":
            gate, up = up, gate
        x = x + (gate / (1 + (-gate).exp()) * up) @ own["ff_out.weight"].T
    head = w["wte.weight"] if fields["weight_tying"] else w["ff_out.weight"]
    return _norm(x, w["ln_f.weight"], fields) @ head.T


def _norm(x: Tensor, weight: Tensor, fields: Mapping[str, Any]) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + fields["rms_norm_eps"]).sqrt() * weight


def _attend(
    own: Mapping[str, Tensor], fields: Mapping[str, Any], x: Tensor, theta: float, causal: bool
) -> Tensor:
    heads, shared = fields["n_heads"], fields["n_kv_heads"]
    width = fields["d_model"] // heads
    parts = []
    for head in range(heads):
        mine, theirs = (slice(h * width, (h + 1) * width) for h in (head, head * shared // heads))
        q = _turn(x @ own["q_proj.weight"][mine].T, theta)
        k = _turn(x @ own["k_proj.weight"][theirs].T, theta)
        score = q @ k.T / width**0.5
        if causal:
            score = score.masked_fill(torch.ones_like(score).triu(1).bool(), -torch.inf)
        chance = (score - score.amax(1, keepdim=True)).exp()
        parts.append(chance / chance.sum(1, keepdim=True) @ (x @ own["v_proj.weight"][theirs].T))
    return torch.cat(parts, 1) @ own["attn_out.weight"].T


def _turn(x: Tensor, theta: float) -> Tensor:
    half = x.shape[1] // 2
    frequency = (1 / theta ** (torch.arange(half, dtype=torch.float32) / half)).double()
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * frequency
    low, high = x[:, :half], x[:, half:]
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], 1)
