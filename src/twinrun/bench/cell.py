"""One runner at one length as a record: verdict, times, memory, operations, distance from the ceilings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twinrun.bench.ceilings import Ceilings
from twinrun.bench.facts import Facts
from twinrun.bench.passage import Passage
from twinrun.bench.refusal import Refusal
from twinrun.bench.shares import (
    PACKED,
    REUSED,
    UNSEEN,
    arithmetic_share,
    cache_bytes_read,
    not_read,
    reading_share,
)
from twinrun.bench.timing import PairedRatio, Timing, ratio, spread
from twinrun.bench.weights import is_packed, is_routed, read_bytes
from twinrun.models.model import Model

PARTS = ("prefill", "decode", "total")
Parts = Mapping[str, Timing | None]


def parts_of(passages: Sequence[Passage]) -> dict[str, Timing | None]:
    """Times of the prompt, of the tokens after the first, and of the whole run; decode is None for one token."""
    decode = [p.decode_seconds for p in passages] if len(passages[0].stamps) > 1 else None
    return {
        "prefill": Timing.of([p.prefill_seconds for p in passages]),
        "decode": None if decode is None else Timing.of(decode),
        "total": Timing.of([p.total_seconds for p in passages]),
    }


def refused(name: str, refusal: Refusal, verdict: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the record of a runner that was not timed."""
    none = dict.fromkeys(["prefill", "decode", "total", "cache", "memory", "speed_up", "text", "settings"])
    kept = None if verdict is None else dict(verdict)
    return {"runner": name, "status": refusal.status, "reason": refusal.reason, "verdict": kept, **none}


def timed(
    name: str,
    runner: Any,
    passages: Sequence[Passage],
    facts: Facts,
    verdict: Mapping[str, Any],
    ceilings: Ceilings,
) -> dict[str, Any]:
    """Return the record of a runner that was timed; what compares it with the first runner is added by `compare`."""
    parts = parts_of(passages)
    prompt = facts.passage
    return {
        "runner": name,
        "status": "timed",
        "reason": None,
        "verdict": dict(verdict),
        "settings": passages[-1].settings,
        "prefill": _prefill(runner, parts["prefill"], facts, ceilings, passages[-1].reused_tokens),
        "decode": _decode(runner, parts["decode"], passages, facts, ceilings),
        "total": _total(parts["total"], len(prompt.stamps)),
        "cache": None
        if not prompt.lengths_end
        else {
            "lengths_prefill": list(prompt.lengths_prefill),
            "lengths_end": list(prompt.lengths_end),
            "bytes_end": facts.cache_bytes,
        },
        "memory": facts.memory_json(),
        "speed_up": None,
        "text": None,
    }


def compare(
    cell: dict[str, Any], parts: Parts, first: Parts, noise: Mapping[str, PairedRatio | None]
) -> None:
    """Add how many times as fast as the first runner each part is, and whether that is within the noise."""
    found: dict[str, Any] = {}
    for part in PARTS:
        mine, theirs, aa = parts[part], first[part], noise[part]
        if mine is None or theirs is None:
            found[part] = None
            continue
        speed = ratio(theirs, mine)
        found[part] = {**speed.to_json(), "within_noise": within_noise(speed, aa)}
    cell["speed_up"] = found


def within_noise(speed: PairedRatio, aa: PairedRatio | None) -> bool | None:
    """Whether a ratio is no larger, either way, than the ratios of the first runner to itself; None without those.

    Example:
        >>> a = PairedRatio(median=1.02, p10=1.0, p90=1.1, pairs=9)
        >>> within_noise(a, PairedRatio(median=1.0, p10=0.96, p90=1.01, pairs=9))
        True
    """
    if aa is None:
        return None
    width = max(abs(math.log(value)) for value in (aa.p10, aa.median, aa.p90))
    return abs(math.log(speed.median)) <= width


def text_against(tokens: Sequence[int | None], first: Sequence[int | None]) -> dict[str, Any]:
    """Where the text that a run wrote leaves that of the first runner; None if nowhere."""
    at = next((i for i, (a, b) in enumerate(zip(tokens, first, strict=False)) if a != b), None)
    return {"first_difference": at}


def _prefill(
    runner: Any, timing: Timing | None, facts: Facts, ceilings: Ceilings, reused: int
) -> dict[str, Any]:
    assert timing is not None, "every run has a first token"
    flops = 0 if _is_packed(runner) else facts.flops.prefill
    share = arithmetic_share(flops, timing.seconds_median, _dtype(runner), ceilings)
    if reused:  # the counted run may have found less in the kept cache than the timed ones
        flops, share = 0, {**dict.fromkeys(share), "mfu_note": REUSED}
    return {**timing.to_json(), "reused_tokens": reused, "flops": flops or None, **share}


def _decode(
    runner: Any, timing: Timing | None, passages: Sequence[Passage], facts: Facts, ceilings: Ceilings
) -> dict[str, Any] | None:
    if timing is None:
        return None
    count = len(passages[0].stamps) - 1
    low, middle, high = spread([s for p in passages for s in p.token_seconds])
    each = timing.seconds_median / count
    held = cache_bytes_read(facts.cache_bytes, facts.passage.lengths_prefill, facts.passage.lengths_end)
    flops = 0 if _is_packed(runner) else facts.flops.token_mean
    model = getattr(runner, "model", None)
    if not isinstance(model, Model):
        reads = not_read(UNSEEN)
    elif _is_packed(runner):
        reads = not_read(PACKED)
    else:
        reads = reading_share(read_bytes(model), held, each, ceilings, routed=is_routed(model))
    return {
        **timing.to_json(),
        "tokens": count,
        "tokens_per_second": 1 / each,
        "token_seconds_p10": low,
        "token_seconds_p50": middle,
        "token_seconds_p90": high,
        "flops_per_token": flops or None,
        **arithmetic_share(flops, each, _dtype(runner), ceilings),
        **reads,
    }


def _total(timing: Timing | None, tokens: int) -> dict[str, Any] | None:
    if timing is None:
        return None
    return {**timing.to_json(), "new_tokens_per_second": tokens / timing.seconds_median}


def _is_packed(runner: Any) -> bool:
    """Whether the runner's products run on packed weights, which torch's counter does not see."""
    model = getattr(runner, "model", None)
    return isinstance(model, Model) and is_packed(model)


def _dtype(runner: Any) -> str:
    return str(getattr(runner, "dtype", ""))


def noise_json(noise: Mapping[str, PairedRatio | None]) -> dict[str, Any]:
    """Return the A/A ratios as JSON types."""
    return {part: None if found is None else found.to_json() for part, found in noise.items()}
