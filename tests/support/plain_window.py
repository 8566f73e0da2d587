"""Attention over the last W tokens, written out plainly for two kinds of decoder. It shares no code with the library.

No cache, no ring, no mask: every query picks its keys by slicing the text. A text of many thousand tokens takes
`tokens x window` work. Precision is chosen, so that the oracle is its own ruler. One row, no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.support.plain_llama import Sizes

Weights = dict[str, Tensor]
ROWS = 64
"""Queries whose keys are cut out together."""


def sizes_of(config: Any) -> Sizes:
    """The numbers of a Llama-like config that weights do not tell."""
    return Sizes(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        theta=config.rope_parameters["rope_theta"],
        epsilon=config.rms_norm_eps,
    )


def attend(query: Tensor, key: Tensor, value: Tensor, window: int, scale: float) -> Tensor:
    """Mix `[tokens, heads, width]`: token i over itself and the `window` - 1 tokens before it."""
    rows = []
    for first in range(0, len(query), ROWS):
        last = min(first + ROWS, len(query))
        low = max(0, first - window + 1)
        scores = torch.einsum("qhd,khd->hqk", query[first:last], key[low:last]) / scale
        for i in range(first, last):
            scores[:, i - first, : max(0, i - window + 1 - low)] = -torch.inf
            scores[:, i - first, i + 1 - low :] = -torch.inf
        weight = (scores - scores.amax(-1, keepdim=True)).exp()
        weight = weight / weight.sum(-1, keepdim=True)
        rows.append(torch.einsum("hqk,khd->qhd", weight, value[low:last]))
    return torch.cat(rows).flatten(1)


def gpt_logits(
    weights: Weights, ids: Sequence[int], *, heads: int, window: int, dtype: torch.dtype
) -> Tensor:
    """Logits `[tokens, vocab]` of the small GPT (pre-norm); positions count on to the table's last row and stay."""
    w = {name.removeprefix("model."): tensor.detach().to(dtype) for name, tensor in weights.items()}
    table = w["embed_positions.weight"]
    at = [min(i, len(table) - 1) for i in range(len(ids))]
    x = w["embed_tokens.weight"][list(ids)] + table[at]
    layer = 0
    while f"layers.{layer}.up_proj.weight" in w:
        own = {
            n.removeprefix(f"layers.{layer}."): t for n, t in w.items() if n.startswith(f"layers.{layer}.")
        }
        h = _layer_norm(x, own, "attention_norm")
        parts = [_affine(h, own, f"attention.{p}_proj").unflatten(1, (heads, -1)) for p in "qkv"]
        mixed = attend(*parts, window, parts[0].shape[-1] ** 0.5)
        x = x + _affine(mixed, own, "attention.o_proj")
        wide = _affine(_layer_norm(x, own, "feed_forward_norm"), own, "up_proj")
        curve = 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
        x = x + _affine(curve, own, "down_proj")
        layer += 1
    return _layer_norm(x, w, "norm") @ w["lm_head.weight"].T


def _layer_norm(x: Tensor, own: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred * centred).mean(-1, keepdim=True)
    return centred / (spread + 1e-5).sqrt() * own[f"{name}.weight"] + own[f"{name}.bias"]


def _affine(x: Tensor, own: Weights, name: str) -> Tensor:
    return x @ own[f"{name}.weight"].T + own[f"{name}.bias"]


def llama_logits(
    weights: Weights, ids: Sequence[int], *, sizes: Sizes, window: int, dtype: torch.dtype
) -> Tensor:
    """Logits `[tokens, vocab]` of a decoder of the Llama kind (biases and q/k norms where the weights have them)."""
    w = {name.removeprefix("model."): tensor.detach().to(dtype) for name, tensor in weights.items()}
    x = w["embed_tokens.weight"][list(ids)]
    turn = _angles(len(ids), sizes, dtype)
    layer = 0
    while f"layers.{layer}.input_layernorm.weight" in w:
        own = {n.split(f"layers.{layer}.")[1]: t for n, t in w.items() if n.startswith(f"layers.{layer}.")}
        h = _rms(x, own["input_layernorm.weight"], sizes.epsilon)
        q, k, v = (_project(own, p, h, sizes) for p in "qkv")
        groups = sizes.heads // sizes.kv_heads
        k, v = (t.repeat_interleave(groups, dim=1) for t in (_rotate(k, turn), v))
        x = x + attend(_rotate(q, turn), k, v, window, sizes.head_dim**0.5) @ own["self_attn.o_proj.weight"].T
        h = _rms(x, own["post_attention_layernorm.weight"], sizes.epsilon)
        gate = h @ own["mlp.gate_proj.weight"].T
        x = x + (gate * gate.sigmoid() * (h @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
        layer += 1
    return _rms(x, w["norm.weight"], sizes.epsilon) @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


def _rms(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + epsilon).sqrt() * weight


def _project(own: Weights, which: str, x: Tensor, sizes: Sizes) -> Tensor:
    flat = x @ own[f"self_attn.{which}_proj.weight"].T + own.get(f"self_attn.{which}_proj.bias", 0.0)
    split = flat.unflatten(1, (-1, sizes.head_dim))
    norm = own.get(f"self_attn.{which}_norm.weight")
    return split if norm is None else _rms(split, norm, sizes.epsilon)


def _angles(length: int, sizes: Sizes, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    steps = torch.arange(0, sizes.head_dim, 2, dtype=torch.float32) / sizes.head_dim
    angle = torch.arange(length).to(dtype)[:, None] * (1.0 / sizes.theta**steps).to(dtype)
    return angle.cos()[:, None], angle.sin()[:, None]


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PlainWindow:
    """An engine of its own for `tr.verify`: `logits(ids, dtype)` in float32, and in float64 one precision up."""

    dtype = "float32"
    name = "plain-window"

    def __init__(self, logits: Callable[[Sequence[int], torch.dtype], Tensor]) -> None:
        self._logits, self._now = logits, torch.float32

    @classmethod
    def of(cls, model: Any, window: int) -> PlainWindow:
        """The oracle of a twinrun model: a small GPT, or a decoder of the Llama kind."""
        weights = {n: t.detach().clone() for n, t in model.core.state_dict().items()}
        if "model.embed_positions.weight" in weights:
            heads = model.config.n_head
            return cls(lambda ids, dtype: gpt_logits(weights, ids, heads=heads, window=window, dtype=dtype))
        sizes = sizes_of(model.config)
        return cls(lambda ids, dtype: llama_logits(weights, ids, sizes=sizes, window=window, dtype=dtype))

    def score(self, tokens: Sequence[int], start: int) -> Tensor:
        """Logits from position `start` - 1 on."""
        with torch.inference_mode():
            return self._logits(tokens, self._now)[start - 1 :]

    @contextmanager
    def raised(self) -> Iterator[torch.dtype]:
        """In float64 inside the block."""
        self._now = torch.float64
        try:
            yield torch.float64
        finally:
            self._now = torch.float32
