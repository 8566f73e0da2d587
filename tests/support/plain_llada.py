"""A LLaDA forward written out from the names in its checkpoint. It shares no code with either library.

Pre-norm blocks, rotary embedding by halves, attention over every real token both ways, gated feed-forward whose gate
is `ff_proj`. In half precision it rounds where LLaDA does: behind each product, with norms, rotation and softmax in
float32. `wrong` spoils one place, to prove that a test sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def plain_llada_logits(
    weights: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    ids: list[int],
    wrong: str = "",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Logits `[tokens, vocab]`. `wrong` is "causal", "gate" (gate and up exchanged), "theta" or "rotary" (rotation in
    the model's precision)."""
    w = {name.removeprefix("model.transformer."): t.detach().to(dtype) for name, t in weights.items()}
    x = w["wte.weight"][ids]
    for layer in range(fields["n_layers"]):
        own = plain_block(w, layer)
        h = plain_norm(x, own["attn_norm.weight"], fields)
        places = torch.arange(len(ids))
        q, k, v = plain_heads(own, fields, h, places, wrong)
        x = x + plain_attention(q, k, v, wrong) @ own["attn_out.weight"].T
        x = x + plain_feed_forward(own, plain_norm(x, own["ff_norm.weight"], fields), wrong)
    return plain_head(w, fields, x)


def plain_block(w: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    """Tensors of one block by their names inside it."""
    return {k.removeprefix(f"blocks.{layer}."): t for k, t in w.items() if k.startswith(f"blocks.{layer}.")}


def plain_head(w: Mapping[str, Tensor], fields: Mapping[str, Any], x: Tensor) -> Tensor:
    """Final norm and logits."""
    return (
        plain_norm(x, w["ln_f.weight"], fields)
        @ w["wte.weight" if fields["weight_tying"] else "ff_out.weight"].T
    )


def plain_norm(x: Tensor, weight: Tensor, fields: Mapping[str, Any]) -> Tensor:
    """Root mean square norm, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide / ((wide * wide).mean(-1, keepdim=True) + fields["rms_norm_eps"]).sqrt()
    return wide.to(x.dtype) * weight


def plain_feed_forward(own: Mapping[str, Tensor], h: Tensor, wrong: str = "") -> Tensor:
    """Gated feed-forward of one block."""
    gate, up = h @ own["ff_proj.weight"].T, h @ own["up_proj.weight"].T
    if wrong == "gate":
        gate, up = up, gate
    wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
    return ((wide / (1 + (-wide).exp())).to(h.dtype) * up) @ own["ff_out.weight"].T


def plain_heads(
    own: Mapping[str, Tensor], fields: Mapping[str, Any], h: Tensor, places: Tensor, wrong: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, `[heads, tokens, head_dim]` each (keys and values once a query head)."""
    heads, shared = fields["n_heads"], fields["n_kv_heads"]
    width = fields["d_model"] // heads
    theta = fields["rope_theta"] * (2 if wrong == "theta" else 1)
    kept: tuple[list[Tensor], ...] = ([], [], [])
    for head in range(heads):
        mine, theirs = (slice(h * width, (h + 1) * width) for h in (head, head * shared // heads))
        kept[0].append(_turn(h @ own["q_proj.weight"][mine].T, places, theta, wrong))
        kept[1].append(_turn(h @ own["k_proj.weight"][theirs].T, places, theta, wrong))
        kept[2].append(h @ own["v_proj.weight"][theirs].T)
    q, k, v = (torch.stack(each) for each in kept)
    return q, k, v


def plain_attention(q: Tensor, k: Tensor, v: Tensor, wrong: str = "") -> Tensor:
    """What `[heads, queries, head_dim]` read, side by side: `[queries, heads * head_dim]`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    score = q.to(wide) @ k.to(wide).transpose(1, 2) / q.shape[2] ** 0.5
    if wrong == "causal":
        score = score.masked_fill(torch.ones_like(score).triu(1).bool(), -torch.inf)
    chance = (score - score.amax(2, keepdim=True)).exp()
    read = chance / chance.sum(2, keepdim=True) @ v.to(wide)
    return read.to(q.dtype).transpose(0, 1).reshape(q.shape[1], -1)


def _turn(x: Tensor, places: Tensor, theta: float, wrong: str = "") -> Tensor:
    wide = x.dtype if wrong == "rotary" else torch.promote_types(x.dtype, torch.float32)
    half = x.shape[1] // 2
    exact = torch.promote_types(x.dtype, torch.float32)
    frequency = (1 / theta ** (torch.arange(half, dtype=torch.float32) / half)).to(exact)
    angle = places.to(exact)[:, None] * frequency
    cos, sin, t = angle.cos().to(wide), angle.sin().to(wide), x.to(wide)
    low, high = t[:, :half], t[:, half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], 1).to(x.dtype)
