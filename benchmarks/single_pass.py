"""One forward for prompt and continuation, against one forward a token and against a KV cache.

A text of 128 + 512 tokens is scored (teacher forcing) by a model of the shape of Qwen2.5-0.5B in bfloat16 with random
weights. Bars: the single pass is at least 100 times faster than one forward a token, and costs at most 1.15 times
the bare forward inside it. The verdict of `twinrun.verify` over all 513 positions stands beside the speeds.

  python benchmarks/single_pass.py                       the full measurement, about half an hour on two cores
  python benchmarks/single_pass.py --quick --out x.json  a smoke test, seconds
  python benchmarks/single_pass.py --judge-positions 33  verdict over the last 33 positions only, minutes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _compare import Sampled, judge
from _record import at_least, at_most, ratios_json, run, say, timings_json
from _shapes import build, random_ids

import twinrun as tr
from twinrun.bench.memory import peak_extra_bytes
from twinrun.bench.timing import interleave, noise, ratio
from twinrun.numerics.divergence import TokenStats, token_stats

ABOUT = "teacher-forced scoring: one forward for all tokens, against one forward a token"
FASTER, OVERHEAD = 100.0, 1.15
SINGLE, BARE, READ = "single pass", "bare forward", "single pass, log-probabilities read"
PLAIN, CACHED = "one forward a token, estimated", "kv cache, one forward a token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-0.5b", metadata={"help": "shape of the model"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    prompt_tokens: int = field(default=128, metadata={"help": "tokens before the first scored one"})
    new_tokens: int = field(default=512, metadata={"help": "tokens that are scored"})
    repeats: int = field(default=10, metadata={"help": "interleaved rounds"})
    cache_repeats: int = field(default=3, metadata={"help": "interleaved rounds with the KV cache"})
    max_strata: int = field(default=20, metadata={"help": "most prefix lengths timed in one round"})
    judge_positions: int = field(default=0, metadata={"help": "last positions the verdict covers, 0 for all"})
    seed: int = field(default=0, metadata={"help": "of weights, tokens and sampled lengths"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shape="quick", prompt_tokens=8, new_tokens=9, repeats=3, cache_repeats=2)


def fast_arms(model: tr.Model, ids: Sequence[int], start: int) -> dict[str, Callable[[], object]]:
    """The arms that run one forward: ours, the bare forward inside it, and ours with every log-probability read."""
    single, module, batch = tr.SinglePass(model), model.model, torch.tensor([ids], device=model.device)

    def bare() -> object:
        with torch.inference_mode():
            return module(batch, logits_to_keep=1, use_cache=False)

    def read() -> TokenStats:
        scores = single.score(ids, start)
        with torch.inference_mode():
            return token_stats(scores.logits, scores.next_ids, top_k=1)

    return {SINGLE: lambda: single.score(ids, start), BARE: bare, READ: read}


def measure(config: Config) -> dict[str, Any]:
    """Run all arms and the verdicts; return the measured part of the record."""
    say(f"building {config.shape} on {config.device}")
    model = build(config.shape, device=config.device, seed=config.seed)
    start = config.prompt_tokens
    ids = random_ids(start + config.new_tokens, model.vocab_size, config.seed)
    arms = fast_arms(model, ids, start)
    sampled = Sampled(model, ids, start, config.max_strata, config.seed)
    say(f"{config.repeats} rounds, {sampled.strata} of {config.new_tokens + 1} prefixes a round")
    timings = interleave({**arms, PLAIN: sampled}, repeats=config.repeats)
    timings[PLAIN] = sampled.scale(timings[PLAIN])
    say(f"{config.cache_repeats} rounds with the KV cache")
    cache = tr.KVCache(model)
    cache.score(
        ids[: start + 2], start
    )  # the warm-up: a whole round would take as long as all other arms together
    slow = {SINGLE: arms[SINGLE], CACHED: lambda: cache.score(ids, start)}
    beside = interleave(slow, repeats=config.cache_repeats, warmups=0)
    say("peak memory")
    peaks = {name: peak_extra_bytes(arm, device=config.device) for name, arm in arms.items()}
    first_judged = max(start, len(ids) + 1 - config.judge_positions) if config.judge_positions else start
    verdicts, seconds = judge(model, ids, first_judged, say)
    complete = seconds[next(iter(seconds))] if first_judged == start else None
    ratios = {
        "one forward a token / single pass": ratio(timings[PLAIN], timings[SINGLE]),
        "single pass / bare forward": ratio(timings[SINGLE], timings[BARE]),
        "log-probabilities read / single pass": ratio(timings[READ], timings[SINGLE]),
        "kv cache / single pass": ratio(beside[CACHED], beside[SINGLE]),
        "A/A noise": noise(timings),
        "A/A noise beside the kv cache": noise(beside),
    }
    return {
        "model": repr(model),
        "arms": {**timings_json(timings), CACHED: beside[CACHED].to_json()},
        "ratios": ratios_json(ratios),
        "peak_extra_bytes": peaks,
        "estimate": sampled.estimate(timings[PLAIN], complete),
        "verdicts": verdicts,
        "judged_positions": {"first": first_judged - 1, "last": len(ids) - 1, "of_first": start - 1},
        "plain_side_seconds": seconds,
        "bars": _bars(ratios, complete, timings[SINGLE].seconds_median),
    }


def _bars(ratios: dict[str, Any], complete: float | None, single_seconds: float) -> list[dict[str, Any]]:
    speed, cost = ratios["one forward a token / single pass"], ratios["single pass / bare forward"]
    bars = [at_least("single pass against one forward a token, estimate", speed.median, FASTER)]
    if complete is not None:
        bars.append(at_least("the same, one complete run", complete / single_seconds, FASTER))
    return [*bars, at_most("single pass against the bare forward inside it", cost.median, OVERHEAD)]


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("single_pass", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
