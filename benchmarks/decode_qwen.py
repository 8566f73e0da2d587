"""Decode at the shape of Qwen2.5-0.5B (random weights, batch 1): our fast steps against transformers' best setting.

transformers `generate` is tried with its dynamic cache, its static cache, and its static cache with `torch.compile`;
the fastest of these is the one to meet. Bar: our best fast step is no slower. A verdict of `twinrun.verify` stands
beside every timed way of ours.

  python benchmarks/decode_qwen.py                       the full measurement, some minutes on two cores, 4 GB
  python benchmarks/decode_qwen.py --compiled no         without the two that compile
  python benchmarks/decode_qwen.py --quick --out x.json  a smoke test
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _decode import (
    Arm,
    DecodeTimes,
    all_pass,
    bytes_per_token,
    ceiling,
    judged,
    ours,
    reading_arms,
    step_costs,
    theirs,
)
from _record import at_least, ratios_json, run, say, timings_json
from _shapes import build, random_ids
from transformers import CompileConfig

import twinrun as tr
from twinrun.bench.timing import Timing, interleave, noise, ratio
from twinrun.errors import ConfigError

ABOUT = "decode at the shape of Qwen2.5-0.5B: our fast steps against transformers' best setting"
CAPTURED, PACKED, COMPILED = "captured", "packed", "compiled"
EAGER = "own forward, dynamic cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-0.5b", metadata={"help": "shape of the model"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    threads: int = field(default=2, metadata={"help": "threads of torch on a processor"})
    prompt_tokens: int = field(default=16, metadata={"help": "tokens of the prompt"})
    new_tokens: int = field(default=64, metadata={"help": "tokens generated"})
    repeats: int = field(default=4, metadata={"help": "interleaved rounds"})
    compiled: str = field(default="yes", metadata={"help": "yes or no: time what compiles, on both sides"})
    judge_tokens: int = field(default=32, metadata={"help": "tokens of the text that verdicts cover"})
    read_gigabytes: float = field(default=2.0, metadata={"help": "memory read to measure bandwidth"})
    seed: int = field(default=0, metadata={"help": "of weights and tokens"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test; nothing is compiled."""
        small = {"new_tokens": 9, "repeats": 2, "judge_tokens": 16, "read_gigabytes": 0.05}
        return cls(shape="quick", threads=1, prompt_tokens=4, compiled="no", **small)


def their_arms(model: tr.Model, ids: Sequence[int], new: int, *, compiled: bool) -> dict[str, Arm]:
    """Transformers' settings: dynamic cache, static cache, static cache with compiled forward."""
    module = model.core
    static = {"cache_implementation": "static"}
    arms = {
        "generate, dynamic cache": theirs(module, ids, new),
        "generate, static cache": theirs(module, ids, new, **static, disable_compile=True),
    }
    if compiled:
        how = CompileConfig(
            fullgraph=True, mode="reduce-overhead" if model.device.type == "cuda" else "default"
        )
        how._compile_all_devices = True  # what transformers asks for on a processor
        arms["generate, static cache, compiled"] = theirs(module, ids, new, **static, compile_config=how)
    return arms


def warmed(arms: dict[str, Arm]) -> tuple[dict[str, float], dict[str, Any]]:
    """Run every arm once; return the seconds of that, which hold capture and compilation, and what it gave."""
    seconds, results = {}, {}
    for name, arm in arms.items():
        say(f"first run: {name}")
        began = time.perf_counter()
        results[name] = arm()
        seconds[name] = time.perf_counter() - began
    return seconds, results


def measure(config: Config) -> dict[str, Any]:
    """Run all arms and the verdicts; return the measured part of the record."""
    if config.compiled not in ("yes", "no"):
        raise ConfigError(f"--compiled is {config.compiled!r}; give yes or no")
    if config.device == "cpu":
        torch.set_num_threads(config.threads)
    say(f"building {config.shape} on {config.device}")
    model = build(config.shape, device=config.device, seed=config.seed)
    ids, new = random_ids(config.prompt_tokens, model.vocab_size, config.seed), config.new_tokens
    runners = {name: tr.KVCache(model, "static", step=name) for name in (PACKED, CAPTURED)}
    runners[EAGER] = tr.KVCache(model, "dynamic")
    if config.compiled == "yes":
        runners[COMPILED] = tr.KVCache(model, "static", step="compiled")
    mine = {name: ours(runner, ids, new) for name, runner in runners.items()}
    others = their_arms(model, ids, new, compiled=config.compiled == "yes")
    first, results = warmed({**mine, **others})
    reads, num_bytes = reading_arms(config.device, config.read_gigabytes)
    times = DecodeTimes()
    say(f"{config.repeats} rounds of {new} tokens, {config.read_gigabytes:g} GB read in each")
    timed = interleave({**mine, **others, **reads}, repeats=config.repeats, warmups=0, on_result=times.keep)
    timings = {name: t for name, t in timed.items() if name not in reads}
    costs = step_costs(results)
    rows = [random_ids(config.judge_tokens, model.vocab_size, config.seed + 1)]
    verdicts = judged(tr.Recompute(model), runners, rows, config.judge_tokens // 2)
    read = bytes_per_token(model, config.prompt_tokens + new // 2)
    shares = {name: times.share(name, timed, read, num_bytes) for name in mine}
    best, fastest = _fastest(timings, others), _fastest(timings, set(mine) - {EAGER})
    ratios = {f"{name} / {fastest}": ratio(timings[name], timings[fastest]) for name in (*others, EAGER)}
    return {
        "model": repr(model),
        "arms": timings_json(timed),
        "ratios": ratios_json({**ratios, "A/A noise": noise(timings)}),
        "tokens_per_second": {name: new / t.seconds_median for name, t in timings.items()},
        "first_run_seconds": first,
        "step_costs": costs,
        "bandwidth": {**ceiling(timed, num_bytes), "share_of_ceiling": shares},
        "best_of_transformers": best,
        "best_of_ours": fastest,
        "verdicts": verdicts,
        "bars": [
            at_least(
                f"transformers' best ({best}) over ours ({fastest})",
                ratios[f"{best} / {fastest}"].median,
                1.0,
            ),
            all_pass(verdicts),
        ],
    }


def _fastest(timings: dict[str, Timing], names: Any) -> str:
    return min(names, key=lambda name: timings[name].seconds_median)


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("decode_qwen", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
