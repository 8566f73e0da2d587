"""Faults of a small GPT written to teach, with a cache added to it: what its text blamed on too little training.

The other half of that case, attention that reads the zero-filled slots of a preallocated cache, is
`static-cache-without-mask` in `caches.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from twinrun.faults.fault import CACHED, Fault, Site
from twinrun.faults.parts import calls
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner


def cached_position_always_zero() -> Fault:
    """Positions are counted from what enters the forward: one token, so position 0."""
    return Fault(
        name="cached-position-always-zero",
        summary="every token decoded from the cache gets the position embedding of position 0",
        thread=(
            "https://github.com/ml-explore/mlx-lm/pull/93",
            "https://github.com/huggingface/transformers/pull/22416",
        ),
        kind="runner",
        where="position ids of the first decoding step",
        site=Site("positions"),
        needs=("cache", "steps after the prompt", "learned positions"),
        runners=CACHED,
        reason_against=_no_learned_positions,
        plant=_zero_positions,
    )


def _no_learned_positions(model: Model) -> str | None:
    if "position_ids" not in model.accepts:
        return "its forward takes no position_ids"
    limit, get = model.max_context, getattr(model.core, "get_input_embeddings", None)
    tokens = get() if callable(get) else None
    tables = (part for part in model.core.modules() if isinstance(part, nn.Embedding) and part is not tokens)
    is_learned = limit is not None and any(table.num_embeddings >= limit for table in tables)
    return None if is_learned else "it has no table of learned positions"


@contextmanager
def _zero_positions(runner: ModelRunner) -> Iterator[None]:
    def change(_module: nn.Module, by_name: dict[str, Any]) -> None:
        ids, cache = by_name["input_ids"], by_name.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()) > 0:
            by_name["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None].expand(ids.shape)

    with calls([runner.model.core], change):
        yield
