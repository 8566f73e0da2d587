"""Rotary positions applied in float32 to a model of lower precision, as LLaDA does (`rope_full_precision`).

transformers multiplies queries and keys by cosines and sines of the model's precision. Here the cosines stay in
float32, so that the product is float32 by promotion, and the attention function rounds it to the precision of the
values, which is the model's. Nothing of transformers is patched: the table is one module of the model, and the
attention function is one more entry of `AttentionInterface`, chosen by the config.

Layers called one at a time get the same: hand `body.rotary_emb(hidden, position_ids)` to them as `position_embeddings`.
A cache is given the keys before they are rounded. It may round them to the values' precision when it stores them: the
same numbers in half the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, eager_attention_forward

from twinrun.errors import ConfigError

_PREFIX = "full_rotary_"


class FullRotary(LlamaRotaryEmbedding):
    """Llama's rotary table whose cosines and sines are float32 at least, whatever the hidden states are."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[rows, tokens, head_dim]` of `position_ids` `[rows, tokens]`, on the device of `x`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        found: tuple[Tensor, Tensor] = super().forward(x.new_empty(0, dtype=wide), position_ids)
        return found


def rounded(attend: Callable[..., Any]) -> Callable[..., Any]:
    """`attend`, a transformers attention function, on queries and keys rounded to the precision of the values."""

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any
    ) -> Any:
        return attend(module, query.to(value.dtype), key.to(value.dtype), value, mask, **kw)

    return forward


_KNOWN: Any = AttentionInterface
_MASKS: Any = AttentionMaskInterface
_ATTEND = {"sdpa": _KNOWN()["sdpa"], "eager": eager_attention_forward}
for _name, _attend in _ATTEND.items():
    _KNOWN.register(_PREFIX + _name, rounded(_attend))
    _MASKS.register(_PREFIX + _name, _MASKS()[_name])


def full_rotary_name(attention: str | None) -> str:
    """Name under which attention that rounds is registered; None is "sdpa".

    Raises:
        ConfigError: an implementation without one.

    Example:
        >>> full_rotary_name("eager")
        'full_rotary_eager'
    """
    name = (attention or "sdpa").removeprefix(_PREFIX)
    if name not in _ATTEND:
        raise ConfigError(
            f"attention={attention!r} does not go with rotary positions in float32; choose {' or '.join(_ATTEND)}"
        )
    return _PREFIX + name


def attention_kind(config: Any) -> str | None:
    """Transformers' name of a model's attention, the rounding of queries and keys left aside.

    Example:
        >>> from types import SimpleNamespace
        >>> attention_kind(SimpleNamespace(_attn_implementation="full_rotary_sdpa"))
        'sdpa'
    """
    name = getattr(config, "_attn_implementation", None)
    return name.removeprefix(_PREFIX) if isinstance(name, str) else None
