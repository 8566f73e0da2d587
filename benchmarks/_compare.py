"""The plain side of a scoring benchmark: too slow to repeat, so sampled for time and run once for the verdict."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import twinrun as tr
from twinrun.bench.remembered import Remembered
from twinrun.bench.timing import Timing
from twinrun.runners.forward import forward


class Sampled:
    """One forward for each of a few prefixes, a fresh draw at every call: one from each of equal strata of lengths.

    The time of a prefix grows smoothly with its length, so a stratified sum times the size of a stratum estimates the
    time of all prefixes with little spread. The number of strata divides the number of prefixes.
    """

    def __init__(self, model: tr.Model, ids: Sequence[int], start: int, max_strata: int, seed: int) -> None:
        self._model = model
        self._ids = torch.tensor([ids], device=model.device)
        self._lengths = range(start, len(ids) + 1)
        self._pick = random.Random(seed)
        count = len(self._lengths)
        self.strata = max(n for n in range(1, min(max_strata, count) + 1) if count % n == 0)
        self.size = count // self.strata

    def draw(self) -> list[int]:
        """Return one prefix length from each stratum."""
        return [self._lengths[k * self.size + self._pick.randrange(self.size)] for k in range(self.strata)]

    def __call__(self) -> None:
        """Run the forwards of one draw: the model's own forward, last position's logits, nothing else."""
        with torch.inference_mode():
            for length in self.draw():
                forward(self._model, self._ids[:, :length])

    def scale(self, timing: Timing) -> Timing:
        """Turn times of draws into estimates of the time of all prefixes."""
        return Timing.of([seconds * self.size for seconds in timing.samples])

    def estimate(self, timing: Timing, complete_seconds: float | None) -> dict[str, Any]:
        """Hold the estimate and its standard error against the complete run."""
        samples = timing.samples
        mean = statistics.fmean(samples)
        error = statistics.stdev(samples) / len(samples) ** 0.5 if len(samples) > 1 else None
        return {
            "prefixes": len(self._lengths),
            "prefixes_timed_a_round": self.strata,
            "seconds_mean": mean,
            "seconds_stderr": error,
            "complete_run_seconds": complete_seconds,
            "complete_run_over_estimate_ratio": None if complete_seconds is None else complete_seconds / mean,
        }


def judge(
    model: tr.Model, ids: Sequence[int], start: int, say: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Return the verdicts on single pass and KV cache over positions start - 1 on, and the plain side's seconds."""
    case = tr.Case(label="the timed text", rows=(tuple(ids),), starts=(start,))
    plain = Remembered(tr.Recompute(model))
    found = {}
    for name, candidate in (("single pass", tr.SinglePass(model)), ("kv cache", tr.KVCache(model))):
        verdict = tr.verify(
            plain, candidate, [case], on_progress=lambda done, total, what: say(f"verify: {what}")
        )
        seconds = {**verdict.seconds, "reference": plain.seconds[plain.dtype]}
        found[name] = replace(verdict, seconds=seconds).to_json()
        del found[name]["env"]  # the record has it once
    return found, plain.seconds
