"""Decode at the shape of GPT-2 (124M parameters, random weights, batch 1): cached, against recompute and `generate`.

Bars: at least 13 times recompute at 256 new tokens; no slower than transformers `generate` in float32; at least 1.7
times that with bfloat16 weights; at least 80 % of the read bandwidth measured in the same process. A verdict of
`twinrun.verify` stands beside every timed way. What a cache can gain over recomputing is bounded by the machine, its
arithmetic against its memory: `bandwidth.recompute_over_ceiling_ratio` is a decode at the full read bandwidth.

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
    SampledRecompute,
    all_pass,
    bytes_per_token,
    judged,
    measure_bandwidth,
    ours,
    step_costs,
    theirs,
)
from _record import at_least, ratios_json, run, say, timings_json
from _shapes import random_ids
from transformers import GPT2Config, GPT2LMHeadModel

import twinrun as tr
from twinrun.bench.timing import interleave, noise, ratio

ABOUT = "decode at the shape of GPT-2: cached, against recompute, generate and the memory's bandwidth"
FAST, HALF, EAGER = "captured, float32", "packed, bfloat16", "own forward, float32"
THEIRS, PLAIN = "generate, float32", "recompute, float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    threads: int = field(default=2, metadata={"help": "threads of torch"})
    layers: int = field(default=12, metadata={"help": "layers of the model"})
    width: int = field(default=768, metadata={"help": "width of the model; heads are 64 wide"})
    vocab: int = field(default=50_257, metadata={"help": "ids in the vocabulary"})
    prompt_tokens: int = field(default=16, metadata={"help": "tokens of the prompt"})
    new_tokens: int = field(default=256, metadata={"help": "tokens generated"})
    repeats: int = field(default=4, metadata={"help": "interleaved rounds against generate"})
    plain_repeats: int = field(default=2, metadata={"help": "interleaved rounds against recompute"})
    strata: int = field(default=16, metadata={"help": "prefix lengths of recompute timed in one round"})
    judge_tokens: int = field(default=64, metadata={"help": "tokens of the text that verdicts cover"})
    read_gigabytes: float = field(default=2.0, metadata={"help": "memory read to measure bandwidth"})
    read_repeats: int = field(default=10, metadata={"help": "rounds of that"})
    seed: int = field(default=0, metadata={"help": "of weights and tokens"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        sizes = {"layers": 2, "width": 128, "vocab": 512, "prompt_tokens": 4, "new_tokens": 12, "strata": 3}
        return cls(
            threads=1,
            repeats=2,
            plain_repeats=2,
            judge_tokens=16,
            read_gigabytes=0.05,
            read_repeats=2,
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
    ids, new = random_ids(config.prompt_tokens, config.vocab, config.seed), config.new_tokens
    runners = {
        FAST: tr.KVCache(model, "static", step="captured"),
        HALF: tr.KVCache(half, "static", step="packed"),
        EAGER: tr.KVCache(model, "dynamic"),
    }
    arms = {name: ours(runner, ids, new) for name, runner in runners.items()}
    costs = step_costs({name: arm() for name, arm in arms.items()})
    bandwidth = measure_bandwidth("cpu", config.read_gigabytes, config.read_repeats)
    say(f"{config.repeats} rounds of {new} tokens against generate")
    timings = interleave({**arms, THEIRS: theirs(model.core, ids, new)}, repeats=config.repeats)
    say(f"{config.plain_repeats} rounds against recompute")
    plain = SampledRecompute(model, len(ids), new, strata=config.strata, window=1024, seed=config.seed)
    beside = interleave({FAST: arms[FAST], PLAIN: plain}, repeats=config.plain_repeats)
    beside[PLAIN] = plain.scale(beside[PLAIN])
    ratios = {
        "generate / ours, float32": ratio(timings[THEIRS], timings[FAST]),
        "generate in float32 / ours, bfloat16": ratio(timings[THEIRS], timings[HALF]),
        "own forward / captured step": ratio(timings[EAGER], timings[FAST]),
        "recompute / cached": ratio(beside[PLAIN], beside[FAST]),
        "A/A noise": noise(timings),
    }
    rows = [random_ids(config.judge_tokens, config.vocab, config.seed + 1)]
    start = config.judge_tokens // 2
    verdicts = judged(tr.Recompute(model), {FAST: runners[FAST], EAGER: runners[EAGER]}, rows, start)
    verdicts |= judged(tr.Recompute(half), {HALF: runners[HALF]}, rows, start)
    read = bytes_per_token(model, config.prompt_tokens + new // 2)
    per_token = timings[FAST].seconds_median / new
    share = read / per_token / bandwidth["bytes_per_second"]
    return {
        "model": repr(model),
        "arms": timings_json({**timings, f"{PLAIN}, estimated": beside[PLAIN]}),
        "ratios": ratios_json(ratios),
        "tokens_per_second": {name: new / t.seconds_median for name, t in timings.items()},
        "bandwidth": {
            **bandwidth,
            "bytes_per_token": read,
            "share_of_ceiling": share,
            "recompute_over_ceiling_ratio": ratios["recompute / cached"].median / share,
        },
        "step_costs": costs,
        "verdicts": verdicts,
        "bars": [
            at_least("cached against recompute", ratios["recompute / cached"].median, 13.0),
            at_least("ours against generate, float32", ratios["generate / ours, float32"].median, 1.0),
            at_least(
                "ours in bfloat16 against generate in float32",
                ratios["generate in float32 / ours, bfloat16"].median,
                1.7,
            ),
            at_least("share of the measured read bandwidth", share, 0.8),
            all_pass(verdicts),
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("decode_gpt2", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
