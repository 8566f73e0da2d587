"""Bytes of a KV cache of each kind, from the shapes of what each layer caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model
from twinrun.models.skeleton import new_cache
from twinrun.plan.following import following
from twinrun.runners.forward import forward

PACKED = "quantized, 4 bits"
KINDS = {
    "dynamic": "grows with the text; layers with a window keep the window",
    "static": "allocated once for prompt and new tokens",
    "rolling": "a ring of the window, of the whole context where there is none",
    "offloaded": "layers wait in host memory; two are on the device at a time",
    "quantized": "8 bits (fp8), lossy; full attention only",
    PACKED: "groups of 64 with scale and zero point, the newest tokens as they are; lossy, needs optimum-quanto",
}
"""Kinds of cache and what each keeps."""
QUANTIZED_BITS, GROUP, RESIDUAL = 4, 64, 128
"""Defaults of transformers' group-wise quantised cache (Liu et al. 2024, KIVI, arXiv:2402.02750)."""
PROBE_TOKENS = 2
RESIDENT_LAYERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one layer caches: heads of its own, widths of keys and values, precision, and the window if it has one."""

    index: int
    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    window: int | None = None

    @property
    def values(self) -> int:
        """Numbers cached of one token."""
        return self.heads * (self.key_width + self.value_width)

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    def tokens(self, total: int) -> int:
        """Tokens kept of a text of `total`."""
        return total if self.window is None else min(total, self.window)

    def keys(self, batch: int, tokens: int) -> Tensor:
        """Keys without numbers, `[batch, heads, tokens, key_width]`."""
        return torch.empty(batch, self.heads, tokens, self.key_width, dtype=self.dtype, device="meta")

    def value_states(self, batch: int, tokens: int) -> Tensor:
        """Values without numbers, `[batch, heads, tokens, value_width]`."""
        return torch.empty(batch, self.heads, tokens, self.value_width, dtype=self.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class CacheBytes:
    """Bytes of one cache on the device, and in host memory if layers wait there."""

    device: int
    host: int = 0


def layer_shapes(model: Model, device: str) -> tuple[LayerShape, ...]:
    """Ask a model without numbers what it caches, by a forward of two tokens.

    Raises:
        UnsupportedModelError: a layer keeps a recurrent state, not keys and values.
    """
    cache = new_cache(model, "dynamic", PROBE_TOKENS)
    with following(model, device):
        forward(model, torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta"), cache=cache)
    shapes = []
    for index, layer in enumerate(cache.layers):
        if hasattr(layer, "conv_states") or hasattr(layer, "recurrent_states"):
            raise UnsupportedModelError(
                f"layer {index} of {type(model.core).__name__} keeps a recurrent state, not keys and values; "
                "`twinrun memory` plans attention only"
            )
        if getattr(layer, "keys", None) is not None:  # else it reads the keys and values of another layer
            window = int(layer.sliding_window) if layer.is_sliding else None
            _, heads, _, width = layer.keys.shape
            shapes.append(
                LayerShape(
                    index=index,
                    heads=heads,
                    key_width=width,
                    value_width=layer.values.shape[-1],
                    dtype=layer.keys.dtype,
                    window=window,
                )
            )
    return tuple(shapes)


def cache_bytes(
    kind: str, shapes: tuple[LayerShape, ...], batch: int, context: int, new_tokens: int, limit: int | None
) -> CacheBytes:
    """Bytes of a cache after `context` prompt tokens and `new_tokens` more in each of `batch` rows.

    Args:
        kind: one of `KINDS`.
        shapes: from `layer_shapes`.
        batch: rows.
        context: tokens of the prompt.
        new_tokens: tokens generated. With 0 a dynamic cache still holds the whole prompt in layers with a window:
            what it keeps is a view of it until the next token.
        limit: the model's context, the length of a ring in layers without a window.
    """
    total = context + new_tokens
    if kind == "dynamic":
        whole = new_tokens == 0
        return CacheBytes(
            batch * sum(s.values * s.itemsize * (total if whole else s.tokens(total)) for s in shapes)
        )
    if kind == "rolling":
        kept = min(total, limit or total)
        return CacheBytes(batch * sum(s.values * s.itemsize * s.tokens(kept) for s in shapes))
    if kind == "quantized":
        return CacheBytes(batch * sum(s.values * total for s in shapes))
    if kind == PACKED:
        return CacheBytes(batch * sum(_quantized_layer(s, context, new_tokens) for s in shapes))
    sizes = sorted((batch * s.values * s.itemsize * s.tokens(total) for s in shapes), reverse=True)
    if kind == "offloaded":
        return CacheBytes(sum(sizes[:RESIDENT_LAYERS]), sum(sizes[RESIDENT_LAYERS:]))
    return CacheBytes(sum(sizes))


def _quantized_layer(shape: LayerShape, context: int, new_tokens: int) -> int:
    """Packed values, a scale and a zero point a group in the model's precision, and the newest tokens as they are."""
    newest = new_tokens % RESIDUAL
    packed = shape.values * (context + new_tokens - newest)
    groups = -(-packed // GROUP)
    return packed * QUANTIZED_BITS // 8 + groups * 2 * shape.itemsize + shape.values * newest * shape.itemsize
