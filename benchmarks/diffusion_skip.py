"""Token skip against the dual cache it lives on: time of a cached step, what is skipped, and the answers beside it.

`builtin:diffusion` fills in canvases of 256 tokens in blocks of 64, one token a step, alone and in a batch; a LLaDA of
0.3B with random weights computes the first steps of such a block. Random weights cost what trained ones cost for the
same number of tokens, but they decide the skip ratio themselves and answer nothing: quality is measured on the built-in
model, on held-out problems. `bound` is 1 / (1 - skipped token-layers): what the same speed per token-layer would give.
With commits by threshold a skip also changes how many forwards are needed: there the whole decode counts. Four tokens a
step move more of the block, so more is computed. The bars are on one token a step; the other two stand beside them.
Bars: a step with tuned skip is at least 1.25 times as fast as one of the dual cache; its accuracy is not below the dual
cache's 95 % interval; a skip that may skip nothing is the dual cache bit for bit.

  python benchmarks/diffusion_skip.py                       the full measurement, some minutes on two cores
  python benchmarks/diffusion_skip.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from _record import at_least, ratios_json, run, say, timings_json
from _shapes import random_ids
from _skip import (
    DUAL,
    FIRST,
    NEVER,
    TUNED,
    accuracy,
    choices,
    held_out,
    layer_costs,
    policies,
    prompts,
    random_llada,
    timed,
)

import twinrun as tr
from twinrun.bench.timing import AGAIN, noise, ratio

ABOUT = "masked-diffusion decoding with the dual cache: token skip and importance skip against none"
FASTER = 1.25
ONE_BY_ONE, FOUR, BY_THRESHOLD = "one token a step", "four tokens a step", "threshold 0.9"
WIDTHS = (64, 48, 32, 24, 16, 12, 8, 4, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="0.3b", metadata={"help": "shape of the random LLaDA"})
    block: int = field(default=64, metadata={"help": "tokens of a block"})
    room: int = field(default=256, metadata={"help": "tokens that are filled in"})
    batch: int = field(default=8, metadata={"help": "rows of the batched decode"})
    repeats: int = field(default=5, metadata={"help": "interleaved rounds of the built-in model"})
    shape_repeats: int = field(default=3, metadata={"help": "interleaved rounds of the random LLaDA"})
    forwards: int = field(default=128, metadata={"help": "most forwards of a decode of the built-in model"})
    shape_forwards: int = field(default=6, metadata={"help": "forwards of a decode of the random LLaDA"})
    problems: int = field(default=200, metadata={"help": "held-out problems"})
    seed: int = field(default=0, metadata={"help": "of the random weights and tokens"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(
            shape="quick", block=8, room=16, batch=2, repeats=2, shape_repeats=2, forwards=4, shape_forwards=4,
            problems=4,
        )  # fmt: skip


def measure(config: Config) -> dict[str, Any]:
    """Run all arms; return the measured part of the record."""
    builtin = tr.load("builtin:diffusion", dtype="float32")
    rules = policies(int(builtin.config.num_hidden_layers))
    asked = prompts(builtin, held_out(config.batch))
    one = {"block": config.block, "room": config.room, "commit": tr.Quota(), "most": config.forwards}
    found: dict[str, Any] = {"model": repr(builtin), "arms": {}, "ratios": {}, "speed": {}}
    fast = {**one, "commit": tr.Threshold(0.9), "most": 4 * config.block * config.room}
    plans = ((f"{builtin.name}, 1 row", asked[:1], one), (f"{builtin.name}, {len(asked)} rows", asked, one))
    for name, rows, how in (*plans, (f"{plans[1][0]}, {BY_THRESHOLD}", asked, fast)):
        say(f"{name}: {config.repeats} rounds")
        _add(found, name, timed(builtin, rows, rules, how, config.repeats))
    large = random_llada(config.shape, config.seed)
    found["shape_model"] = repr(large)
    say(f"{large.name}: {config.shape_repeats} rounds")
    ids = [random_ids(64, large.vocab_size - 1, config.seed)]
    deep = policies(int(large.config.num_hidden_layers))
    for label, commit in ((ONE_BY_ONE, tr.Quota()), (FOUR, tr.Quota(max(1, config.block // 4)))):
        some = {**one, "most": config.shape_forwards, "commit": commit}
        _add(found, f"LLaDA {config.shape}, {label}", timed(large, ids, deep, some, config.shape_repeats))
    say("layer costs")
    slots = len(ids[0]) + config.room
    found["layer_costs"] = {m.name: layer_costs(m, WIDTHS, slots, repeats=5) for m in (builtin, large)}
    _layer_bounds(found, {f"{builtin.name}, 1 row": (builtin, rules), f"LLaDA {config.shape}": (large, deep)})
    found["accuracy"] = _accuracies(builtin, rules, config)
    found["first_problem"] = FIRST
    same = _exact(builtin, asked, config)
    found["verdicts"] = _verdicts(found["accuracy"], same)
    found["notes"] = _notes(found)
    found["bars"] = _bars(found, builtin.name, same)
    return found


def _add(found: dict[str, Any], where: str, result: tuple[Any, Any, Any]) -> None:
    """Put the timings, ratios and bounds of one model and batch into the record."""
    whole, steps, skipped = result
    found["arms"] |= {f"{where}: {name}": timing for name, timing in timings_json(steps).items()}
    gains = {}
    for name in (each for each in skipped if each not in (DUAL, DUAL + AGAIN)):
        gain, share = ratio(steps[DUAL], steps[name]), skipped[name]
        gains[f"{where}: {DUAL} / {name}"] = gain
        found["speed"][f"{where}: {name}"] = {
            "step_ratio": gain.median,
            "decode_ratio": ratio(whole[DUAL], whole[name]).median,
            "skip_ratio": share,
            "bound_ratio": 1 / (1 - share),
        }
    found["ratios"] |= ratios_json(gains | {f"{where}: A/A noise": noise(steps)})


def _layer_bounds(found: dict[str, Any], models: dict[str, tuple[tr.Model, dict[str, Any]]]) -> None:
    """What a step of one row could gain at most: its deep layers cost what so few tokens cost, all else stays.

    The rest of a step (early layers, head, commit) and what a layer costs however few tokens it has cannot be skipped.
    """
    for where, (model, rules) in models.items():
        depth, costs = int(model.config.num_hidden_layers), found["layer_costs"][model.name]
        for name, speed in found["speed"].items():
            rule = rules.get(name.rpartition(": ")[2])
            if not name.startswith(where) or not isinstance(rule, tr.TokenSkip):
                continue
            deep = depth - rule.layer_k
            share = 1 - speed["skip_ratio"] * depth / deep  # of the tokens, in the deep layers
            saved = deep * (_cost(costs, costs[0]["tokens"]) - _cost(costs, share * costs[0]["tokens"]))
            step = found["arms"][f"{name.rpartition(': ')[0]}: {DUAL}"]["seconds_median"]
            speed |= {"layer_bound_ratio": step / (step - saved), "saved_share_at_most": saved / step}


def _cost(costs: list[dict[str, float]], tokens: float) -> float:
    """Seconds of a layer between two widths that were measured; the narrowest stands for all below it."""
    falling = sorted(costs, key=lambda c: c["tokens"])
    for low, high in itertools.pairwise(falling):
        if low["tokens"] <= tokens <= high["tokens"]:
            part = (tokens - low["tokens"]) / (high["tokens"] - low["tokens"])
            return low["seconds_median"] + part * (high["seconds_median"] - low["seconds_median"])
    return falling[0]["seconds_median"]


def _accuracies(model: tr.Model, rules: dict[str, Any], config: Config) -> dict[str, Any]:
    """Exact answers of each arm, one token a step and by threshold."""
    items, found = held_out(config.problems), {}
    for label, commit in ((ONE_BY_ONE, tr.Quota()), (BY_THRESHOLD, tr.Threshold(0.9))):
        for name, skip in {**rules, **choices(int(model.config.num_hidden_layers))}.items():
            say(f"accuracy, {label}: {name}")
            runner = tr.Diffusion(model, block_length=config.block, cache="dual", commit=commit, skip=skip)
            found[f"{label}: {name}"] = accuracy(runner, items, config.room)
    return found


def _exact(model: tr.Model, asked: list[list[int]], config: Config) -> bool:
    """Whether a skip that may skip nothing commits the dual cache's tokens with its confidences, bit for bit."""

    def steps(skip: Any) -> list[Any]:
        runner = tr.Diffusion(
            model, block_length=config.block, cache="dual", commit=tr.Threshold(0.9), skip=skip
        )
        found = runner.generate(asked, config.room, early_stop=False).steps
        return [(step.positions, step.tokens, step.confidence) for step in found]

    plain, depth = steps(None), int(model.config.num_hidden_layers)
    never = (
        tr.TokenSkip(layer_k=2, threshold=1.0),
        tr.TokenSkip(layer_k=2, refresh_every=1),
        tr.TokenSkip(layer_k=depth),
    )
    return all(steps(skip) == plain for skip in never)


def _verdicts(scores: dict[str, Any], same: bool) -> dict[str, Any]:
    """Say of each arm what it is beside the dual cache: identical, lossy inside the interval, or different."""
    found = {
        NEVER: {
            "verdict": "identical" if same else "different",
            "reason": "tokens and confidences of threshold 1, refresh_every 1 and layer_k at full depth",
        }
    }
    for name, score in scores.items():
        label = name.split(": ")[0]
        low, high = scores[f"{label}: {DUAL}"]["interval_95"]
        inside = score["exact"] >= low
        found[name] = {
            "verdict": "lossy" if inside else "different",
            "reason": f"{score['hits']} of {score['problems']} exact, dual cache's interval {low:.3f} to {high:.3f}, "
            f"{score['forwards']} forwards, skipped {score['skip_ratio']:.3f}",
        }
    return found


def _notes(found: dict[str, Any]) -> list[str]:
    """Bounds beside the speeds, and what fewer tokens a layer cost, in words."""
    lines = []
    for name, s in found["speed"].items():
        bound = f"bound {s['bound_ratio']:.3f}x, skipped {s['skip_ratio']:.3f}"
        lines.append(
            f"{name}: a step {s['step_ratio']:.3f}x as fast ({bound}), a decode {s['decode_ratio']:.3f}x"
        )
    for name, costs in found["layer_costs"].items():
        lines += [
            f"one layer of {name}, {c['tokens']} tokens: {1e3 * c['seconds_median']:.3f} ms, "
            f"{c['efficiency']:.2f} of the speed a token"
            for c in costs
        ]
    return lines


def _bars(found: dict[str, Any], builtin: str, same: bool) -> list[dict[str, Any]]:
    bars = [at_least("a skip that may skip nothing is the dual cache bit for bit", float(same), 1.0, "share")]
    for where, speed in found["speed"].items():
        if where.endswith(TUNED) and BY_THRESHOLD not in where and FOUR not in where:
            bars.append(at_least(f"cached step, {where}", speed["step_ratio"], FASTER))
    for label in (ONE_BY_ONE, BY_THRESHOLD):
        low = found["accuracy"][f"{label}: {DUAL}"]["interval_95"][0]
        exact = found["accuracy"][f"{label}: {TUNED}"]["exact"]
        bars.append(at_least(f"accuracy of {builtin}, {label}: {TUNED}", exact, low, "share"))
    return bars


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("diffusion_skip", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
