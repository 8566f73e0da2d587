"""Faults of prompt pruning: the pruned cache is not what is decoded from, or positions are counted anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attention_of, attentions, calls, forwards, parameters
from twinrun.faults.sites import paths
from twinrun.models.model import Model
from twinrun.prune.pruned import Pruned
from twinrun.prune.refusals import refuse_model

PRUNED = "pruned:norm+schedule=1:0.7,2:0.45"
"""The runner that these faults are planted in; the trusted side is the same without them."""


def pruned_prefill_not_decoded() -> Fault:
    """The prefill prunes, then decoding runs on the original prompt, without the cache that it left."""
    return Fault(
        name="pruned-prefill-not-decoded",
        summary="the prompt is pruned in its prefill, and every token behind it is computed from the original ids, all "
        "layers seeing every token; the pruned cache is never read, so its speed and its loss are those of no pruning",
        thread=("https://github.com/Shuaijun-LIU/SDTP",),
        kind="runner",
        where="cache of the layers behind the first stage, from the first decoded token on",
        site=Site("cache", first_pruned_attention),
        needs=("steps after the prompt",),
        runners=(PRUNED,),
        reason_against=cannot_be_pruned,
        plant=_decode_from_ids,
    )


def positions_renumbered_after_prune() -> Fault:
    """Tokens that are left of a prompt get positions 0, 1, 2, ... again; decoding goes on at the prompt's length."""
    return Fault(
        name="positions-renumbered-after-prune",
        summary="behind the first stage the tokens that are left are rotated as if they were the first of the text, "
        "while decoded tokens stand behind the whole prompt: layers disagree about distances",
        thread=("https://github.com/NVIDIA/kvpress/issues/16",),
        kind="runner",
        where="the first layer that prunes, rotary angles of its prompt",
        site=Site("module", first_pruned_layer),
        needs=("rotary tables handed to layers",),
        runners=(PRUNED,),
        reason_against=_no_rotary_tables,
        plant=_renumbered,
    )


def first_pruned_attention(model: Model) -> tuple[str, ...]:
    """Attention of layer 1, where `PRUNED` has its first stage."""
    return paths(model, [attention_of(model.layout.layers[1])])


def first_pruned_layer(model: Model) -> tuple[str, ...]:
    """Layer 1 itself: what it is handed is right, what it makes of it is not."""
    return paths(model, [model.layout.layers[1]])


def cannot_be_pruned(model: Model) -> str | None:
    """Why this model cannot be pruned as `PRUNED` does, or None."""
    if len(model.layout.layers) < 3:
        return "it has fewer than three layers"
    try:
        refuse_model(model)
    except Exception as error:  # a typed refusal; its text is the reason
        return str(error)
    return None


def _no_rotary_tables(model: Model) -> str | None:
    if any("position_embeddings" not in parameters(part) for part in attentions(model)):
        return "its attention is handed no rotary tables"
    return cannot_be_pruned(model)


@contextmanager
def _decode_from_ids(runner: Any) -> Iterator[None]:
    assert isinstance(runner, Pruned)
    prompt: list[dict[str, Any]] = [{}]

    def run(right: Callable[..., Any], by_name: dict[str, Any]) -> Any:
        cache, mask = by_name.get("past_key_values"), by_name.get("attention_mask")
        if cache is None or int(cache.get_seq_length()) == 0:
            prompt[0] = {name: by_name.get(name) for name in ("input_ids", "position_ids")}
            return right(**by_name)
        for name, before in prompt[0].items():
            now = by_name.get(name)
            prompt[0][name] = None if before is None or now is None else torch.cat([before, now], dim=1)
        with runner.paused():
            return right(
                **{
                    **by_name,
                    **prompt[0],
                    "attention_mask": mask,
                    "past_key_values": None,
                    "use_cache": False,
                }
            )

    with forwards(runner.model.core, run):
        yield


@contextmanager
def _renumbered(runner: Any) -> Iterator[None]:
    parts = attentions(runner.model)
    whole: list[tuple[Tensor, ...]] = []

    def renumber(part: nn.Module, by_name: dict[str, Any]) -> None:
        table = by_name["position_embeddings"]
        if part is parts[0]:
            whole[:] = [table]
        elif whole and table[0].shape[1] < whole[0][0].shape[1]:
            count = table[0].shape[1]
            pairs = zip(whole[0], table, strict=True)
            by_name["position_embeddings"] = tuple(each[:, :count].expand_as(old) for each, old in pairs)

    with calls(parts, renumber):
        yield
