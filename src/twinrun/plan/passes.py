"""Forwards of a model without numbers: the runners' own calls, on the meta device, with the bytes alive counted."""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from twinrun.models.model import Model
from twinrun.models.skeleton import new_cache, tell_length
from twinrun.numerics.blocks import BLOCK_BYTES, HEAD_BLOCKS
from twinrun.numerics.divergence import token_stats
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.plan.caches import layer_shapes
from twinrun.plan.following import following
from twinrun.runners.forward import HiddenRows, forward


class Passes:
    """Peak bytes, above the weights, of the passes that a plan is made of. Results are kept: a pass runs once."""

    def __init__(self, model: Model, device: str) -> None:
        """Take a model from `twinrun.models.skeleton.build` and the device planned for, "cpu" or "cuda"."""
        self.model, self._device = model, device
        self.shapes = layer_shapes(model, device)
        self.prefill = lru_cache(maxsize=None)(self._prefill)
        self.decode = lru_cache(maxsize=None)(self._decode)
        self.streamed = lru_cache(maxsize=None)(self._streamed)
        self.blocks = lru_cache(maxsize=None)(self._blocks)

    def _prefill(self, batch: int, tokens: int, kind: str, keep: int, upcast: bool, room: int) -> int:
        """Peak of one forward over the prompt into a cache.

        Args:
            batch: rows.
            tokens: tokens a row.
            kind: "dynamic" or "static".
            keep: last rows of logits, 0 for all.
            upcast: whether a float32 copy of the logits is made.
            room: tokens that a static cache has place for.
        """
        with following(self.model, self._device) as alive:
            cache = new_cache(self.model, kind, room)
            logits = forward(self.model, self._ids(batch, tokens), cache=cache, last=keep)
            held = logits.float() if upcast else logits
            del held
        return alive.peak

    def _decode(self, batch: int, tokens: int, kind: str) -> int:
        """Peak of the forward of one token that fills the cache up to `tokens`."""
        cache = new_cache(self.model, kind, tokens)
        with following(self.model, self._device) as alive:
            for shape in self.shapes:
                for new in (max(1, tokens - 2), 1):  # the second lets go of what only a prompt leaves behind
                    cache.update(shape.keys(batch, new), shape.value_states(batch, new), shape.index)
            tell_length(cache, tokens - 1)
            alive.restart()
            logits = forward(self.model, self._ids(batch, 1), cache=cache).float()
            del logits
        return alive.peak

    def _streamed(self, batch: int, tokens: int, policy: LogitsPolicy) -> int:
        """Peak of a scored batch: one forward without a cache, then the hidden states through the head in blocks."""
        caught: list[Tensor] = []

        def catch(_module: Any, _args: Any, output: Any) -> None:
            caught.append(output if isinstance(output, Tensor) else output[0])

        body = self.model.layout.body
        with following(self.model, self._device) as alive, ExitStack() as undo:
            undo.callback(body.register_forward_hook(catch).remove)
            forward(self.model, self._ids(batch, tokens))
            self._score(caught[0][0], policy)
            caught.clear()
        return alive.peak

    def _blocks(self, tokens: int, policy: LogitsPolicy) -> int:
        """Peak of the blocks alone: logits of one call of the head, and what the softmax of a block holds."""
        width = int(getattr(self.model.layout.head, "in_features", 0) or self.model.config.hidden_size)
        hidden = torch.empty(tokens, width, dtype=self.model.dtype, device="meta")
        with following(self.model, self._device, known=[hidden]) as alive:
            self._score(hidden, policy)
        return alive.peak

    def _score(self, hidden: Tensor, policy: LogitsPolicy) -> None:
        """Stream rows; two calls of the head show the peak, however many follow."""
        vocab = self.model.vocab_size
        a_call = HEAD_BLOCKS * policy.block_bytes(vocab, BLOCK_BYTES) // (4 * vocab)
        kept = min(policy.rows(len(hidden)), 2 * max(HEAD_BLOCKS, a_call))
        next_ids = torch.zeros(kept, dtype=torch.long, device="meta")
        token_stats(HiddenRows(self.model, hidden[-kept:]), next_ids, top_k=1, policy=policy)

    def _ids(self, batch: int, tokens: int) -> Tensor:
        return torch.zeros(batch, tokens, dtype=torch.long, device="meta")
