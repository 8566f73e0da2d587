"""How a model knows where a token stands, and the form in which it takes a mask of our own.

Both decide what a window of the last W tokens means for it, and whether we can give it one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, DynamicLayer

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model
from twinrun.models.rotary import attention_kind

FIXED_ROPE = ("default", "linear", "yarn", "llama3", "proportional")
"""Rotary kinds whose frequencies do not depend on how long the text is."""
TABLE_SLACK = 8
"""Rows that a table of positions may have beyond the context (OPT keeps two for padding)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Where a model takes positions from.

    Attributes:
        kind: "learned" (a table of embeddings, one row a position: a key carries its position for ever) or "rotary"
            (scores depend on the distance between two tokens alone).
        rows: positions that exist; None where they may count on without end.
    """

    kind: Literal["learned", "rotary"]
    rows: int | None


def positions_of(model: Model) -> Positions:
    """Say where a model takes positions from.

    Raises:
        UnsupportedModelError: neither a table nor rotary with fixed frequencies (ALiBi, dynamic NTK, LongRoPE, ...).
    """
    config, tokens = model.config, getattr(model.core, "get_input_embeddings", lambda: None)()
    limit = model.max_context
    tables = (p for p in model.core.modules() if isinstance(p, nn.Embedding) and p is not tokens)
    if limit and any(limit <= table.num_embeddings <= limit + TABLE_SLACK for table in tables):
        return Positions(kind="learned", rows=limit)
    ropes = rope_types(config)
    varying = [kind for kind in ropes if kind not in FIXED_ROPE]
    if varying:
        raise UnsupportedModelError(
            f"{_family(model)} turns a whole text to other rotary frequencies once it is long ({varying[0]}); keys "
            "that are kept would be stale, so a window is not offered: use Recompute without one"
        )
    if getattr(config, "alibi", False) or not (ropes or getattr(config, "rotary_dim", None)):
        raise UnsupportedModelError(
            f"{_family(model)} has neither rotary nor learned positions; its own code counts the tokens of the "
            "whole text (ALiBi), so a window is not offered: use cache='dynamic'"
        )
    return Positions(kind="rotary", rows=None if ropes else limit)


def rope_types(config: Any) -> list[str]:
    """Kinds of rotary embedding named by a config, one for each kind of layer; empty without rotary positions."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = [v for v in given.values() if isinstance(v, dict)] or ([given] if given else [])
    return [str(each.get("rope_type", "default")) for each in nested]


def layer_windows(model: Model) -> list[int | None]:
    """Return the sliding window of each decoder layer as its config names it; None for full attention.

    Raises:
        UnsupportedModelError: layers of another kind (chunked or linear attention, window by the model's own code).
    """
    config = model.config
    layers: list[Any] = list(DynamicCache(config=config).layers) if config is not None else []
    odd = [layer for layer in layers if type(layer) is not DynamicLayer and not is_sliding(layer)]
    named = {
        *(getattr(config, "layer_types", None) or ()),
        *(getattr(config, "attention_layers", None) or ()),
    }
    other = sorted(named - {"full_attention", "sliding_attention", "global"})
    if not layers or odd or other:
        what = other[0] if other else type(odd[0]).__name__ if odd else "no config"
        raise UnsupportedModelError(
            f"{_family(model)} has layers that are neither full nor sliding-window attention ({what}); "
            "use cache='dynamic'"
        )
    return [int(layer.sliding_window) if is_sliding(layer) else None for layer in layers]


def is_sliding(layer: Any) -> bool:
    """Whether a layer of a transformers cache keeps a sliding window of tokens."""
    return bool(getattr(layer, "is_sliding", False)) and hasattr(layer, "sliding_window")


def as_mask(model: Model, visible: Tensor) -> Tensor:
    """Return `visible` `[rows or 1, 1, queries, keys]`, True where a query may look, as the model's attention takes it.

    Raises:
        UnsupportedModelError: an attention implementation that takes no mask of that form.
    """
    kind = attention_kind(model.config)
    if kind == "sdpa":
        return visible
    if kind == "eager":
        hidden = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
        return hidden.masked_fill(~visible, torch.finfo(model.dtype).min)
    raise UnsupportedModelError(
        f"{_family(model)} runs with attention {kind!r}, which takes no mask of our own; "
        "load it with attention='sdpa'"
    )


def _family(model: Model) -> str:
    return type(model.core).__name__
