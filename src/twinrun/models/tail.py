"""What a model does to its head's output before it calls it logits: nothing, a soft cap, a scale, a division."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tail:
    """logits = cap * tanh(x * multiply / divide / cap), in `dtype` if the model upcasts. None switches a part off."""

    softcap: float | None = None
    multiply: float | None = None
    divide: float | None = None
    upcast: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the head's output, in the same order of operations as transformers' models."""
        if self.upcast is not None and x.dtype.itemsize < self.upcast.itemsize:
            x = x.to(self.upcast)
        if self.multiply is not None:
            x = x * self.multiply
        if self.divide is not None:
            x = x / self.divide
        if self.softcap is not None:
            x = torch.tanh(x / self.softcap) * self.softcap
        return x


def find_tail(config: Any, head_output: Tensor, logits: Tensor) -> Tail | None:
    """Return the transform that turns `head_output` into `logits` bit for bit, or None if none of the known ones does.

    Known: final soft-capping (Gemma 2), logit scale (Cohere), division (Granite), head multiplier
    (Falcon-H1), each also with a float32 upcast. The values come from the model's config.
    """
    if head_output.shape != logits.shape:
        return None
    text = text_config(config)
    softcap = getattr(text, "final_logit_softcapping", None)
    multiply = getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None)
    divide = getattr(text, "logits_scaling", None)
    upcast = logits.dtype if logits.dtype != head_output.dtype else None
    candidates = [Tail(upcast=upcast), Tail(softcap, multiply, divide, upcast)]
    candidates += [
        Tail(softcap=softcap, upcast=upcast),
        Tail(multiply=multiply, upcast=upcast),
        Tail(divide=divide, upcast=upcast),
    ]
    for tail in candidates:
        got = tail(head_output)
        if got.dtype == logits.dtype and torch.equal(got, logits):
            return tail
    return None


def text_config(config: Any) -> Any:
    """Return the text part of a transformers config (the config itself for a text model, None for None)."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
