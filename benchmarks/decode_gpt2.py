"""Decode at the shape of GPT-2 (124M parameters, random weights, batch 1): cached, against recompute and `generate`.

Bars: at least 13 times recompute at 256 new tokens behind a long prompt; no slower than transformers `generate` in
float32; at least 1.7 times that with bfloat16 weights; our best float32 step at 80 % or more of the read bandwidth
measured in the same rounds. A verdict of `twinrun.verify` stands beside every timed way; int8 weights are lossy, with
their KL.

The share of the bandwidth: weights that a step must read (the token table once, as the head), keys and values of the
mean context, over the time from the first token to the last, over the best of three ways to read 2 GB in that round.

What a cache can gain over recomputing is bounded by the machine, its arithmetic against its memory, and by the length
of the text: `against_recompute` gives for a short prompt and a long one the ratio measured, and the bound: the time of
the forwards, over one of the prompt and steps that read weights, keys and values at the measured bandwidth.

  python benchmarks/decode_gpt2.py                       the full measurement, some minutes on two cores
  python benchmarks/decode_gpt2.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _decode import (
    INT8_BUDGET,
    DecodeTimes,
    SampledRecompute,
    all_pass,
    bytes_per_token,
    ceiling,
    judged,
    lossy_passes,
    ours,
    reading_arms,
    step_costs,
    theirs,
)
from _record import at_least, ratios_json, run, say, timings_json
from _shapes import random_ids
from transformers import GPT2Config, GPT2LMHeadModel

import twinrun as tr
from twinrun.bench.timing import Timing, interleave, noise, ratio
from twinrun.runners.forward import forward

ABOUT = "decode at the shape of GPT-2: cached, against recompute, generate and the memory's bandwidth"
FAST, HALF, EAGER = "captured, float32", "packed, bfloat16", "own forward, float32"
PACKED, INT8 = "packed, float32", "packed, bfloat16, int8 weights"
THEIRS, PLAIN = "generate, float32", "recompute, float32, estimated"
PREFILL = "forward of the prompt"
BAR = 13.0
"""Times that cached decode must be faster than recompute, behind the long prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    threads: int = field(default=2, metadata={"help": "threads of torch"})
    layers: int = field(default=12, metadata={"help": "layers of the model"})
    width: int = field(default=768, metadata={"help": "width of the model; heads are 64 wide"})
    vocab: int = field(default=50_257, metadata={"help": "ids in the vocabulary"})
    prompt_tokens: int = field(default=16, metadata={"help": "tokens of the prompt"})
    long_prompt_tokens: int = field(
        default=512, metadata={"help": "tokens of the long prompt, timed against recompute only"}
    )
    new_tokens: int = field(default=256, metadata={"help": "tokens generated"})
    repeats: int = field(default=4, metadata={"help": "interleaved rounds against generate"})
    plain_repeats: int = field(default=2, metadata={"help": "interleaved rounds against recompute"})
    strata: int = field(default=16, metadata={"help": "prefix lengths of recompute timed in one round"})
    judge_tokens: int = field(default=64, metadata={"help": "tokens of the text that verdicts cover"})
    read_gigabytes: float = field(default=2.0, metadata={"help": "memory read to measure bandwidth"})
    seed: int = field(default=0, metadata={"help": "of weights and tokens"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        sizes = {"layers": 2, "width": 128, "vocab": 512, "prompt_tokens": 4, "new_tokens": 12, "strata": 3}
        sizes["long_prompt_tokens"] = 24
        return cls(
            threads=1,
            repeats=2,
            plain_repeats=2,
            judge_tokens=16,
            read_gigabytes=0.05,
            **sizes,
        )


def build(config: Config) -> tuple[tr.Model, tr.Model]:
    """Return the model in float32, and the same weights in bfloat16."""
    torch.manual_seed(config.seed)
    shape = GPT2Config(
        n_layer=config.layers,
        n_embd=config.width,
        n_head=config.width // 64,
        vocab_size=config.vocab,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = GPT2LMHeadModel(shape).eval()
    return tr.load(module), tr.load(copy.deepcopy(module).to(torch.bfloat16))


def measure(config: Config) -> dict[str, Any]:
    """Run all arms and the verdicts; return the measured part of the record."""
    torch.set_num_threads(config.threads)
    model, half = build(config)
    small = tr.int8_weight_only(half)
    ids, new = random_ids(config.prompt_tokens, config.vocab, config.seed), config.new_tokens
    runners = {
        FAST: tr.KVCache(model, "static", step="captured"),
        PACKED: tr.KVCache(model, "static", step="packed"),
        HALF: tr.KVCache(half, "static", step="packed"),
        INT8: tr.KVCache(small, "static", step="packed"),
        EAGER: tr.KVCache(model, "dynamic"),
    }
    arms = {name: ours(runner, ids, new) for name, runner in runners.items()}
    arms[THEIRS] = theirs(model.core, ids, new)
    costs = step_costs({name: arm() for name, arm in arms.items()})
    reads, num_bytes = reading_arms("cpu", config.read_gigabytes)
    times = DecodeTimes()
    say(
        f"{config.repeats} rounds of {new} tokens against generate, {config.read_gigabytes:g} GB read in each"
    )
    timed = interleave({**arms, **reads}, repeats=config.repeats, warmups=0, on_result=times.keep)
    timings = {name: t for name, t in timed.items() if name not in reads}
    bandwidth = ceiling(timed, num_bytes)
    best = min((FAST, PACKED), key=lambda name: timings[name].seconds_median)
    behind = {
        length: _recomputed(config, model, runners[best], length, bandwidth["bytes_per_second"])
        for length in (config.prompt_tokens, config.long_prompt_tokens)
    }
    ratios = {
        "generate / ours, float32": ratio(timings[THEIRS], timings[best]),
        "generate in float32 / ours, bfloat16": ratio(timings[THEIRS], timings[HALF]),
        "generate in float32 / ours, int8 weights": ratio(timings[THEIRS], timings[INT8]),
        "own forward / captured step": ratio(timings[EAGER], timings[FAST]),
        **{
            f"recompute / cached, prompt of {length} tokens": ratio(found[PLAIN], found[best])
            for length, (found, _) in behind.items()
        },
        "A/A noise": noise(timings),
    }
    context = config.prompt_tokens + new // 2
    shares = {
        name: times.share(name, timed, bytes_per_token(runner.model, context), num_bytes)
        for name, runner in runners.items()
    }
    verdicts, lossy = _verdicts(config, model, half, runners)
    plain = {
        f"{way}, prompt of {length} tokens": found[way]
        for length, (found, _) in behind.items()
        for way in (best, PLAIN)
    }
    return {
        "model": repr(model),
        "arms": timings_json({**timed, **plain}),
        "ratios": ratios_json(ratios),
        "tokens_per_second": {name: new / t.seconds_median for name, t in timings.items()},
        "bandwidth": {
            **bandwidth,
            "share_of_ceiling": shares,
            "best_float32": best,
        },
        "against_recompute": {str(length): told for length, (_, told) in behind.items()},
        "bar_reached_from_prompt_tokens": _reached({n: told for n, (_, told) in behind.items()}),
        "step_costs": costs,
        "verdicts": {**verdicts, **lossy},
        "bars": _bars(config, ratios, shares[best]["share_median"], verdicts, lossy),
    }


def _bars(
    config: Config,
    ratios: dict[str, Any],
    share: float,
    verdicts: dict[str, Any],
    lossy: dict[str, Any],
) -> list[dict[str, Any]]:
    behind = f"prompt of {config.long_prompt_tokens} tokens"
    return [
        at_least(f"cached against recompute, {behind}", ratios[f"recompute / cached, {behind}"].median, BAR),
        at_least("ours against generate, float32", ratios["generate / ours, float32"].median, 1.0),
        at_least(
            "ours in bfloat16 against generate in float32",
            ratios["generate in float32 / ours, bfloat16"].median,
            1.7,
        ),
        at_least("share of the measured read bandwidth, float32", share, 0.8),
        all_pass(verdicts),
        lossy_passes(lossy),
    ]


def _recomputed(
    config: Config, model: tr.Model, runner: tr.KVCache, length: int, bytes_per_second: float
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Time cached decode behind a prompt beside one forward a token, the latter sampled; also what bounds the ratio."""
    say(f"{config.plain_repeats} rounds against recompute, prompt of {length} tokens")
    ids, new = random_ids(length, config.vocab, config.seed), config.new_tokens
    name = PACKED if runner.step == "packed" else FAST
    plain = SampledRecompute(model, length, new, strata=config.strata, window=1024, seed=config.seed)
    prompt = torch.tensor([list(ids)])

    def prefill() -> None:
        with torch.inference_mode():
            forward(model, prompt)

    cached = ours(runner, ids, new)
    for arm in (cached, prefill):
        arm()
    found = interleave(
        {name: cached, PLAIN: plain, PREFILL: prefill}, repeats=config.plain_repeats, warmups=0
    )
    found[PLAIN] = plain.scale(found[PLAIN])
    reading = (new - 1) * bytes_per_token(model, length + new // 2) / bytes_per_second
    least = found[PREFILL].seconds_median + reading
    return found, {
        "ratio_median": ratio(found[PLAIN], found[name]).median,
        "bound": found[PLAIN].seconds_median / least,
        "cached_seconds": found[name].seconds_median,
        "recompute_seconds": found[PLAIN].seconds_median,
        "prompt_forward_seconds": found[PREFILL].seconds_median,
        "recompute_seconds_per_token": found[PLAIN].seconds_median / new,
        "reading_seconds_per_token": reading / (new - 1),
    }


def _reached(behind: dict[int, dict[str, float]]) -> float | None:
    """Length of the prompt from which on recompute takes `BAR` times as long: both times are lines in that length."""
    (low, first), (high, last) = behind.items()
    over = [told["recompute_seconds"] - BAR * told["cached_seconds"] for told in (first, last)]
    if over[0] >= 0 or over[1] <= over[0]:
        return float(low) if over[0] >= 0 else None
    return low - over[0] * (high - low) / (over[1] - over[0])


def _verdicts(
    config: Config, model: tr.Model, half: tr.Model, runners: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = [random_ids(config.judge_tokens, config.vocab, config.seed + 1)]
    start = config.judge_tokens // 2
    found = judged(tr.Recompute(model), {name: runners[name] for name in (FAST, PACKED, EAGER)}, rows, start)
    found |= judged(tr.Recompute(half), {HALF: runners[HALF]}, rows, start)
    return found, judged(tr.Recompute(half), {INT8: runners[INT8]}, rows, start, budget=INT8_BUDGET)


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("decode_gpt2", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
