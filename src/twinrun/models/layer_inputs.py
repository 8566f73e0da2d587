"""What a decoder layer is handed beside its hidden states, and how that is cut to some of the tokens.

A body computes positions, rotary tables and masks once, for all tokens, and hands the same objects to every layer.
Where layers see fewer tokens, each of these must be cut along its own token axis: only this file knows which.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.errors import UnsupportedModelError

CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
BY_TOKEN = ("position_ids", "position_embeddings")
"""Arguments with one entry a token, `[rows or 1, tokens, ...]`, or a tuple of such."""
BY_KEY = ("attention_mask", "alibi")
"""Arguments with one entry a key on their last axis, and perhaps one a query on the axis before."""
FREE = ("cache_position", "input_ids", "encoder_hidden_states", "encoder_attention_mask")
"""Arguments that no layer of a decoder reads token by token."""


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Names of the arguments of a module's forward, so that they can be read and replaced however they are passed."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module) -> LayerInputs:
        """Read the signature."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        found = inspect.signature(module.forward).parameters.values()
        return cls(tuple(p.name for p in found if p.kind in kinds))

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}

    def replaced(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], new: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put `new` values in the places that they were passed in."""
        at = dict(enumerate(self.names[: len(args)]))
        swapped = tuple(new.get(at.get(i, ""), value) for i, value in enumerate(args))
        return swapped, {name: new.get(name, value) for name, value in kwargs.items()}


def cache_of(named: Mapping[str, Any]) -> Any:
    """The cache among arguments by name, or None."""
    return next((named[name] for name in CACHE_NAMES if named.get(name) is not None), None)


def take(values: Tensor, at: Tensor) -> Tensor:
    """Entries `at` `[rows, kept]` of `[rows or 1, tokens, ...]`: `[rows, kept, ...]`, copied row by row."""
    rows, kept = at.shape
    at = at.to(values.device)
    if values.shape[0] == 1:
        return values[0].index_select(0, at.flatten()).view(rows, kept, *values.shape[2:])
    offset = torch.arange(rows, device=at.device)[:, None] * values.shape[1]
    return values.flatten(0, 1).index_select(0, (at + offset).flatten()).view(rows, kept, *values.shape[2:])


def take_keys(mask: Tensor, keys: Tensor, queries: Tensor | None = None) -> Tensor:
    """Columns `keys` `[rows, kept]` of a mask or bias, and rows `queries` of it where it has one a query.

    Args:
        mask: `[rows, keys]`, `[rows * heads, 1, keys]` or `[rows or 1, heads or 1, queries or 1, keys]`, of any dtype.
        keys: int64 indices.
        queries: the same for the axis before the last; None leaves it.
    """
    rows, keys = keys.shape[0], keys.to(mask.device)
    if mask.ndim == 2:
        return mask.expand(rows, -1).gather(1, keys)
    if mask.ndim == 3:
        per_head = keys.repeat_interleave(mask.shape[0] // rows, dim=0)[:, None]
        return mask.gather(2, per_head.expand(-1, mask.shape[1], -1))
    if queries is not None and mask.shape[2] > 1:
        mask = _along(mask, queries.to(mask.device), 2)
    return _along(mask, keys, 3)


def _along(mask: Tensor, at: Tensor, axis: int) -> Tensor:
    if at.shape[0] == 1:
        return mask.index_select(axis, at[0])
    shape = [at.shape[0], mask.shape[1], mask.shape[2], mask.shape[3]]
    shape[axis] = at.shape[1]
    index = at[:, None, :, None] if axis == 2 else at[:, None, None, :]
    return mask.expand(at.shape[0], -1, -1, -1).gather(axis, index.expand(shape))


def take_positions(value: Any, at: Tensor) -> Any:
    """Entries of position ids or of a rotary table: a tensor `[rows or 1, tokens, ...]`, or a tuple of such."""
    if isinstance(value, Tensor):
        return take(value, at)
    if isinstance(value, (tuple, list)):
        return type(value)(take_positions(each, at) for each in value)
    return value


def refuse_unknown(named: Mapping[str, Any], width: int, family: str) -> None:
    """Refuse a layer that is handed something with an entry a token that is not known here.

    Raises:
        UnsupportedModelError: it is; names the argument.
    """
    known = (*BY_TOKEN, *BY_KEY, *FREE, *CACHE_NAMES)
    for name, value in named.items():
        if name not in known and isinstance(value, Tensor) and width in value.shape[:3]:
            raise UnsupportedModelError(
                f"layers of {family} are handed {name} {tuple(value.shape)}, which has an entry a token that twinrun "
                "cannot cut; prune a Llama-like model, GPT-2, GPT-NeoX, Falcon or BLOOM"
            )
    ids = named.get("position_ids")
    if isinstance(ids, Tensor) and ids.ndim > 2:
        raise UnsupportedModelError(
            f"{family} has positions of several axes {tuple(ids.shape)}; prune a model of plain text"
        )


def why_not_prunable(cache: Any) -> str | None:
    """Say why layers of this cache cannot be of unequal lengths, or None: only growing, full-attention layers can."""
    if not hasattr(cache, "layers"):
        return f"a {type(cache).__name__} has no layers"
    odd = next((layer for layer in cache.layers if type(layer).__name__ != "DynamicLayer"), None)
    if odd is not None:
        return f"it holds a {type(odd).__name__}, whose layers are of one length"
    return "it is offloaded" if getattr(cache, "offloading", False) else None


def cached_tokens(cache: Any) -> int:
    """Tokens that the first layer of a cache has seen; 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())
