"""Peak bytes of one request under each logits policy and each kind of cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from twinrun.models.memory import weight_bytes
from twinrun.models.model import Model
from twinrun.models.skeleton import stored
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.plan.caches import PACKED, CacheBytes, LayerShape, cache_bytes
from twinrun.plan.passes import Passes

WHOLE, WHOLE_FLOAT32, LAST, STREAMED = "whole prompt", "whole prompt, float32", "last row", "streamed"
POLICIES = {
    WHOLE: "the model's plain forward: a row for every token, in the model's precision",
    WHOLE_FLOAT32: "the same and its float32 copy",
    LAST: "generating: one row a text, LogitsPolicy(keep='last')",
    STREAMED: "scoring every token in blocks, no cache: tr.score, LogitsPolicy()",
}
TRACED = ("dynamic", "static", "quantized")
"""Kinds of cache whose passes are followed; the others are computed from the dynamic one."""


@dataclass(frozen=True, slots=True)
class Request:
    """Sizes of one request: rows, prompt tokens a row, tokens generated."""

    batch: int
    context: int
    new_tokens: int


class Predictor:
    """Predictions for one model in one precision with one attention on one kind of device."""

    def __init__(self, model: Model, device: str) -> None:
        """Take a model from `twinrun.models.skeleton.build`."""
        self.model, self.device = model, device
        self._passes = Passes(model, device)

    @cached_property
    def weights(self) -> int:
        """Bytes of weights and buffers."""
        return weight_bytes(stored(self.model))

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """What each layer caches."""
        return self._passes.shapes

    def weights_in(self, dtype: torch.dtype) -> int:
        """Bytes of weights in another precision."""
        return weight_bytes(stored(self.model), dtype)

    def cache(self, kind: str, r: Request) -> CacheBytes:
        """Bytes of the cache at the end of the request."""
        return cache_bytes(kind, self.shapes, r.batch, r.context, r.new_tokens, self.model.max_context)

    def prompt_cache(self, r: Request) -> int:
        """Bytes of a dynamic cache when the prompt has just been read."""
        return self.cache("dynamic", Request(r.batch, r.context, 0)).device

    def logits(self, policy: str, r: Request) -> int:
        """Bytes of the logits alone: rows x vocabulary x bytes, with the float32 copy; of the blocks where streamed."""
        size = self.model.dtype.itemsize
        rows = r.batch * (1 if policy == LAST else r.context)
        if policy == STREAMED:
            return self._passes.blocks(r.context, LogitsPolicy())
        wide = 4 if policy == WHOLE_FLOAT32 and size != 4 else 0
        return rows * self.model.vocab_size * (size + wide)

    def activations(self, r: Request) -> int:
        """What the prompt's forward holds at its peak beside the cache, with one row of logits."""
        return self.prefill(LAST, "dynamic", r) - self.prompt_cache(r)

    def prefill(self, policy: str, kind: str, r: Request) -> int:
        """Peak of the prompt's forward above the weights."""
        if policy == STREAMED:
            return self._passes.streamed(r.batch, r.context, LogitsPolicy())
        followed = kind if kind in TRACED else "dynamic"
        keep = 1 if policy == LAST else 0
        upcast = policy in (WHOLE_FLOAT32, LAST)
        room = r.context + r.new_tokens if followed == "static" else 0
        peak = self._passes.prefill(r.batch, r.context, followed, keep, upcast, room)
        return peak if kind == followed else peak - self.prompt_cache(r) + self._short(kind, r)

    def decode(self, kind: str, r: Request) -> int:
        """Peak of the last token's forward above the weights; 0 if nothing is generated."""
        if r.new_tokens == 0:
            return 0
        followed = kind if kind in TRACED else "dynamic"
        peak = self._passes.decode(r.batch, r.context + r.new_tokens, followed)
        if kind == followed:
            return peak
        extra = self._unpacked(r) if kind == PACKED else 0
        return peak - self.cache("dynamic", r).device + self.cache(kind, r).device + extra

    def total(self, policy: str, kind: str, r: Request) -> int:
        """Peak of the whole request, weights included."""
        later = 0 if policy == STREAMED else self.decode(kind, r)
        return self.weights + max(self.prefill(policy, kind, r), later)

    def _short(self, kind: str, r: Request) -> int:
        """The cache behind the prompt, and the layer at work, whose keys and values are whole."""
        held = self.cache(kind, Request(r.batch, r.context, min(r.new_tokens, 1))).device
        return held + self._unpacked(r)

    def _unpacked(self, r: Request) -> int:
        """Keys and values of the largest layer, of every token, in the model's precision."""
        return max(s.values * s.itemsize for s in self.shapes) * r.batch * (r.context + r.new_tokens)
