"""Step one and two of the demo: fast paths against the plain one, verdict first, then speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from twinrun.bench.remembered import Remembered
from twinrun.bench.timing import AGAIN, PairedRatio, Timing, interleave, noise, ratio
from twinrun.cli.demo_text import Plan, Text
from twinrun.models.model import Model
from twinrun.numerics.divergence import token_stats
from twinrun.runners.kvcache import KVCache
from twinrun.runners.runner import ModelRunner
from twinrun.runners.singlepass import SinglePass
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify

Tick = Callable[[str], object]
STAGES = 4


def twins(model: Model, reference: Remembered, text: Text, plan: Plan, tick: Tick) -> dict[str, Any]:
    """Verdict and speed of three fast ways against one forward a token, all on one text."""
    plain = reference.runner
    fast: list[ModelRunner] = [KVCache(model, "dynamic"), KVCache(model, "static"), SinglePass(model)]
    verdicts: list[Verdict] = []
    for runner in fast:
        tick(f"{runner.dtype}: verdict on {runner.name}")
        verdicts.append(verify(reference, runner, [text.case]))
    tick(f"{plain.dtype}: timing all ways in turns")
    cost = 2 * verdicts[0].seconds["reference"] + sum(v.seconds["candidate"] for v in verdicts)
    times = _timed([plain, *fast], text, plan, cost)
    rows = [
        {**lean(v), "speed": speed_of(times[v.candidate], ratio(times[plain.name], times[v.candidate]))}
        for v in verdicts
    ]
    return {
        "dtype": plain.dtype,
        "repeats": times[plain.name].repeats,
        "noise": noise(times).to_json(),
        "seconds_again": times[plain.name + AGAIN].to_json(),
        "rows": [first_row(plain, times), *rows],
    }


def first_row(plain: ModelRunner, times: dict[str, Timing]) -> dict[str, Any]:
    """The row of the reference: no verdict, and its own time against itself."""
    return {
        "candidate": plain.name,
        "verdict": "reference",
        "dtype": plain.dtype,
        "ratio_max": None,
        "ratio_rms": None,
        "kl_mean": None,
        "speed": speed_of(times[plain.name], noise(times)),
    }


def lean(verdict: Verdict) -> dict[str, Any]:
    """The record without the environment, which stands once in the demo's own."""
    return {key: value for key, value in verdict.to_json().items() if key != "env"}


def _timed(runners: list[ModelRunner], text: Text, plan: Plan, round_seconds: float) -> dict[str, Timing]:
    """Time all ways in turns. They have just run for their verdicts, so nothing is left to warm up."""
    arms = {runner.name: partial(score_fully, runner, text) for runner in runners}
    fewest, most = plan.rounds
    rounds = min(most, max(fewest, int(plan.rounds_seconds / round_seconds)))
    return interleave(arms, repeats=rounds, warmups=0)


def score_fully(runner: ModelRunner, text: Text) -> None:
    """Score the text down to its log-probabilities, so that no way leaves its head for later."""
    scores = runner.score(text.ids, text.start)
    with torch.inference_mode():
        token_stats(scores.logits, scores.next_ids, top_k=1)


def speed_of(timing: Timing, speed_up: PairedRatio) -> dict[str, Any]:
    """Seconds and factors as the verdict tables take them."""
    factors = {"median": speed_up.median, "p10": speed_up.p10, "p90": speed_up.p90}
    return {**timing.to_json(), **{f"speed_up_{key}": value for key, value in factors.items()}}
