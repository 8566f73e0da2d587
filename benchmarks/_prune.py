"""What the two measurements of prefill pruning share: arms, counted operations, the ideal, the verdicts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _record import at_least, ratios_json, timings_json

import twinrun as tr
from twinrun.bench.flops import counter
from twinrun.bench.memory import peak_extra_bytes
from twinrun.bench.timing import interleave, noise, ratio
from twinrun.prune.scorer import Scorer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the oracle is that of the tests

from tests.support.plain_prune import MaskedOut

WHOLE, PRUNED = "whole prefill", "pruned prefill"
SHARE = 0.9
"""Of the speed-up that the counted operations allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One length to be measured."""

    length: int
    ratio: float
    first: int
    every: int
    repeats: int
    judge: bool
    seed: int


def pruner(model: tr.Model, request: Request) -> tr.Pruned:
    """The paper's schedule with scorers of the size that training makes; untrained, for speed does not depend on it."""
    depth = len(model.layout.layers)
    schedule = tr.Schedule.geometric(depth, request.ratio, request.first, request.every)
    scorer = Scorer.new(model, schedule.layers, seed=request.seed).to(model.dtype)
    return tr.Pruned(model, scorer, schedule=schedule)


def arms(model: tr.Model, p: tr.Pruned, ids: Sequence[int]) -> dict[str, Callable[[], object]]:
    """A prefill each: the model's own forward, its cache filled, logits of the last token alone."""
    batch = torch.tensor([list(ids)], device=model.device)

    def whole() -> object:
        with torch.inference_mode():
            return model.model(input_ids=batch, use_cache=True, logits_to_keep=1)

    def pruned() -> object:
        with p.attached():
            return whole()

    return {WHOLE: whole, PRUNED: pruned}


def measure_length(
    model: tr.Model, ids: Sequence[int], request: Request, say: Callable[[str], None]
) -> dict[str, Any]:
    """Time both arms in turns, count both, and judge what the pruned one computes."""
    p = pruner(model, request)
    both = arms(model, p, ids)
    flops = {name: _counted(call) for name, call in both.items()}
    say(f"{request.length} tokens: {request.repeats} rounds")
    timings = interleave(both, repeats=request.repeats)
    peaks = {name: peak_extra_bytes(call, device=model.device) for name, call in both.items()}
    ideal = flops[WHOLE] / flops[PRUNED]
    speed = ratio(timings[WHOLE], timings[PRUNED])
    depth = len(model.layout.layers)
    keep = {
        "mean_keep_ratio": p.schedule.mean_keep(depth, request.length, p.protection),
        "mean_keep_squared_ratio": p.schedule.mean_keep_squared(depth, request.length, p.protection),
        "stages": {str(s.layer): s.keep for s in p.schedule.stages},
        "layer_lengths_tokens": p.schedule.lengths(depth, request.length, p.protection),
    }
    return {
        "arms": timings_json(timings),
        "ratios": ratios_json({"whole / pruned": speed, "A/A noise": noise(timings)}),
        "flops": flops,
        "ideal_ratio": ideal,
        "keep": keep,
        "peak_extra_bytes": peaks,
        "verdicts": _verdicts(model, p, ids, say) if request.judge else {},
        "bars": [
            at_least(
                f"speed-up over the ideal of the counted operations ({ideal:.3f}x)",
                speed.median / ideal,
                SHARE,
            )
        ],
    }


def _counted(call: Callable[[], object]) -> int:
    with counter() as counted:
        call()
    return int(counted.get_total_flops())


def _verdicts(
    model: tr.Model, p: tr.Pruned, ids: Sequence[int], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Is the pruned prefill the right one (masked full attention), and how far is it from the whole one?

    The second says nothing about a trained model: the weights are random.
    """
    text = [*ids, *ids[:4]]
    case = tr.Case(label="the timed prompt", rows=(tuple(text),), starts=(len(ids),))
    p.score(text, len(ids))
    assert p.last is not None
    right = MaskedOut(model, {tuple(ids): p.last.kept_positions()}, attention="sdpa")
    found = {}
    for name, reference in (("masked full attention", right), ("no pruning", tr.KVCache(model))):
        verdict = tr.verify(
            reference, p, [case], explain=False, on_progress=lambda _d, _t, what: say(f"verify: {what}")
        ).to_json()
        del verdict["env"]
        found[f"pruned against {name}"] = verdict
    return found
