"""Queries and keys of one layer for given inputs, as its attention function would get them: normed, projected, rotated.

The layer's own forward runs up to its attention function and is left there. That function is chosen by the config, so a
name registered with transformers' `AttentionInterface` stands in for it during that one call; no module is changed and
no family is known by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from twinrun.errors import UnsupportedModelError
from twinrun.models.layer_inputs import CACHE_NAMES

_NAME = "twinrun_look"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """What one attention module computed before attention itself.

    Attributes:
        module: the attention module.
        query: `[rows, heads, tokens, head_dim]`.
        key, value: `[rows, kv_heads, tokens, head_dim]`.
        scaling: factor on query times key.
        hidden: `[rows, tokens, width]`, what entered the module.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    hidden: Tensor


class _Seen(Exception):
    """Carries what the attention function got out of the layer; never reaches a user."""

    def __init__(
        self, module: nn.Module, tensors: tuple[Tensor, Tensor, Tensor], scaling: float | None
    ) -> None:
        super().__init__()
        self.module, self.tensors, self.scaling = module, tensors, scaling


def _look(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    scaling: float | None = None,
    **__: Any,
) -> Any:
    raise _Seen(module, (query, key, value), scaling)


_KNOWN: Any = AttentionInterface
_KNOWN.register(_NAME, _look)


def attention_inputs(layer: nn.Module, handed: Mapping[str, Any], config: Any) -> AttentionInputs:
    """Run a decoder layer up to its attention function and return what that would get.

    Args:
        layer: a decoder layer.
        handed: its arguments by name; the cache among them is left out, so that nothing is stored.
        config: the config that names the attention function.

    Raises:
        UnsupportedModelError: the layer has no attention function chosen by the config.

    Cost: the layer's first norm and its projections to queries, keys and values, for all tokens given.
    """
    given = {k: v for k, v in handed.items() if k not in CACHE_NAMES and k != "use_cache"}
    entered: list[Tensor] = []
    with _standing_in(config), _inputs_of_attention(layer, entered):
        try:
            layer.forward(**given)
        except _Seen as seen:
            query, key, value = seen.tensors
            scaling = query.shape[-1] ** -0.5 if seen.scaling is None else float(seen.scaling)
            hidden = next((h for h in reversed(entered)), query)
            return AttentionInputs(
                module=seen.module, query=query, key=key, value=value, scaling=scaling, hidden=hidden
            )
    raise UnsupportedModelError(
        f"layers of {type(layer).__name__} do not take their attention from the config, so queries and keys cannot be "
        "read; use another selector, such as 'norm' or 'recency'"
    )


@contextmanager
def _standing_in(config: Any) -> Iterator[None]:
    before = config._attn_implementation_internal
    config._attn_implementation_internal = _NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before


@contextmanager
def _inputs_of_attention(layer: nn.Module, into: list[Tensor]) -> Iterator[None]:
    """Note the hidden states that enter the modules of a layer that are called attention."""

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(found, Tensor):
            into.append(found)

    handles = [
        part.register_forward_pre_hook(note, with_kwargs=True)
        for name, part in layer.named_children()
        if "attention" in type(part).__name__.lower()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_token_attention(found: AttentionInputs, real: Tensor) -> Tensor:
    """Attention of the last token to every token, averaged over heads, in float32: `[rows, tokens]`, rows sum to 1.

    Grouped queries read the keys of their group. Only the last row of the attention matrix is computed.

    Args:
        found: queries and keys.
        real: `[rows, tokens]` bool, False for padding, which gets 0.
    """
    rows, kv_heads, _tokens, dim = found.key.shape
    query = found.query[:, :, -1].reshape(rows, kv_heads, -1, dim)
    logits = torch.einsum("bhgd,bhnd->bhgn", query.float(), found.key.float()) * found.scaling
    logits = logits.masked_fill(~real[:, None, None], -torch.inf)
    return logits.softmax(-1).mean((1, 2))
