"""What to do about a plan: the policy and cache that fit, how much larger the request could be, or what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from twinrun.numerics.units import show_bytes
from twinrun.plan.caches import PACKED
from twinrun.plan.fit import largest
from twinrun.plan.predict import LAST, STREAMED, Predictor, Request
from twinrun.plan.record import Advice, CachePlan, LogitsPlan

FAR = 2**22
"""Most tokens that are searched for a model without a limit of its own."""
MANY = 2**16
"""Most rows that are searched."""
PREFERRED = ("dynamic", "static", "rolling", "offloaded", "quantized", PACKED)
"""Exact and simple ones first; the quantised cache changes the output."""


def usable(kind: str, predictor: Predictor, device: str) -> bool:
    """Whether a kind of cache helps: a ring needs windows, fewer bits need none, offloading a second memory."""
    has_window = any(shape.window for shape in predictor.shapes)
    if kind == "rolling":
        return has_window
    if kind.startswith("quantized"):
        return not has_window
    return kind != "offloaded" or device == "cuda"


def advise(
    predictor: Predictor,
    request: Request,
    room: int,
    logits: Sequence[LogitsPlan],
    caches: Sequence[CachePlan],
) -> Advice:
    """Choose what fits; the first that does, in the order of `PREFERRED`, is recommended."""
    by_kind = {row.kind: row for row in caches}
    scoring = request.new_tokens == 0
    chosen = next((kind for kind in PREFERRED if kind in by_kind and by_kind[kind].fits), None)
    streamed = next(row for row in logits if row.policy == STREAMED)
    if scoring and streamed.fits:
        policy, kind, total = STREAMED, None, streamed.total_bytes
    elif chosen is not None:
        policy, kind, total = LAST, chosen, by_kind[chosen].total_bytes
    else:
        return _too_large(predictor, request, room, logits, caches)
    sizes = _largest(predictor, request, room, policy, kind or "dynamic")
    return Advice(
        policy=policy,
        cache=kind,
        total_bytes=total,
        largest_context=sizes[0],
        largest_batch=sizes[1],
        text=_words(predictor, (policy, kind, total), room, sizes, request.new_tokens),
    )


def _words(
    predictor: Predictor,
    best: tuple[str, str | None, int],
    room: int,
    sizes: tuple[int, int],
    new_tokens: int,
) -> str:
    policy, kind, total = best
    way = (
        "score with streamed logits, no cache"
        if kind is None
        else f"generate from the {policy}, {kind} cache"
    )
    lossy = " (lossy: verify it)" if (kind or "").startswith("quantized") else ""
    limit = predictor.model.max_context
    ends = " (the model's limit)" if limit is not None and sizes[0] + new_tokens >= limit else ""
    return (
        f"{way}{lossy}: {show_bytes(total)} of {show_bytes(room)} ({total / room:.0%}); "
        f"the largest context that fits at this batch is {sizes[0]:,} tokens{ends}, "
        f"the largest batch at this context {sizes[1]:,}"
    )


def _largest(predictor: Predictor, request: Request, room: int, policy: str, kind: str) -> tuple[int, int]:
    limit = predictor.model.max_context or FAR
    far = max(1, limit - request.new_tokens)
    context = largest(
        lambda n: predictor.total(policy, kind, replace(request, context=n)),
        room,
        min(request.context, far),
        far,
    )
    batch = largest(
        lambda n: predictor.total(policy, kind, replace(request, batch=n)),
        room,
        request.batch,
        max(MANY, request.batch),
    )
    return context, batch


def _too_large(
    predictor: Predictor,
    request: Request,
    room: int,
    logits: Sequence[LogitsPlan],
    caches: Sequence[CachePlan],
) -> Advice:
    """Nothing fits: how much is missing, and what would fit."""
    need = min([row.total_bytes for row in logits] + [row.total_bytes for row in caches])
    text = f"nothing fits: at least {show_bytes(need)} are needed and there are {show_bytes(room)}; "
    weights = predictor.weights
    sizes = (0, 0)
    if weights >= room:
        half = predictor.weights_in(torch.bfloat16)
        text += f"the weights alone are {show_bytes(weights)}: "
        text += "choose bfloat16" if half < min(room, weights) else "choose a larger machine"
    else:
        policy = STREAMED if request.new_tokens == 0 else LAST
        sizes = _largest(predictor, request, room, policy, "dynamic")
        text += (
            f"at this batch {sizes[0]:,} tokens of context fit"
            if sizes[0]
            else "not even one token of context fits"
        )
    return Advice(
        policy=None,
        cache=None,
        total_bytes=need,
        largest_context=sizes[0],
        largest_batch=sizes[1],
        text=text,
    )
