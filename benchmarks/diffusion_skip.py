"""Token skip against the dual cache it lives on: time of a cached step, what is skipped, and the answers beside it.

`builtin:diffusion` fills in canvases of 256 tokens in blocks of 64, one token a step, alone and in a batch; a LLaDA of
0.3B with random weights computes the first steps of such a block. Random weights cost what trained ones cost for the
same number of tokens, but they decide the skip ratio themselves and answer nothing: quality is measured on the built-in
model, on held-out problems. `bound` is 1 / (1 - skipped token-layers): what the same speed per token-layer would give.
Bars: tuned skip is at least 1.25 times as fast a step as the dual cache, its accuracy inside the dual cache's 95 %
interval, and a skip that may skip nothing is the dual cache bit for bit.

  python benchmarks/diffusion_skip.py                       the full measurement, some minutes on two cores
  python benchmarks/diffusion_skip.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from _record import at_least, at_most, ratios_json, run, say, timings_json
from _shapes import random_ids
from _skip import (
    DUAL,
    NEVER,
    RANKED,
    TUNED,
    accuracy,
    held_out,
    layer_costs,
    policies,
    prompts,
    random_llada,
    timed,
)

import twinrun as tr
from twinrun.bench.timing import noise, ratio

ABOUT = "masked-diffusion decoding with the dual cache: token skip and importance skip against none"
FASTER = 1.25
WIDTHS = (64, 48, 32, 16, 8, 4, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="0.3b", metadata={"help": "shape of the random LLaDA"})
    block: int = field(default=64, metadata={"help": "tokens of a block"})
    room: int = field(default=256, metadata={"help": "tokens that are filled in"})
    batch: int = field(default=8, metadata={"help": "rows of the batched decode"})
    repeats: int = field(default=5, metadata={"help": "interleaved rounds of the built-in model"})
    shape_repeats: int = field(default=3, metadata={"help": "interleaved rounds of the random LLaDA"})
    forwards: int = field(default=260, metadata={"help": "most forwards of a decode of the built-in model"})
    shape_forwards: int = field(default=9, metadata={"help": "forwards of a decode of the random LLaDA"})
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
    for name, rows in ((f"{builtin.name}, 1 row", asked[:1]), (f"{builtin.name}, {len(asked)} rows", asked)):
        say(f"{name}: {config.repeats} rounds")
        _add(found, name, timed(builtin, rows, rules, one, config.repeats))
    large = random_llada(config.shape, config.seed)
    found["shape_model"] = repr(large)
    say(f"{large.name}: {config.shape_repeats} rounds")
    ids = [random_ids(64, large.vocab_size - 1, config.seed)]
    some = {**one, "most": config.shape_forwards, "commit": tr.Quota(max(1, config.block // 4))}
    deep = policies(int(large.config.num_hidden_layers))
    _add(found, f"LLaDA {config.shape}", timed(large, ids, deep, some, config.shape_repeats))
    say("layer costs")
    found["layer_costs"] = layer_costs(large, WIDTHS, len(ids[0]) + config.room, repeats=10)
    found["accuracy"] = _accuracies(builtin, rules, config)
    same = _exact(builtin, asked, config)
    found["verdicts"] = _verdicts(found["accuracy"], same)
    found["notes"] = _notes(found)
    found["bars"] = _bars(found, builtin.name, same)
    return found


def _add(found: dict[str, Any], where: str, result: tuple[Any, Any, Any]) -> None:
    """Put the timings, ratios and bounds of one model and batch into the record."""
    _whole, steps, skipped = result
    found["arms"] |= {f"{where}: {name}"[-80:]: t for name, t in timings_json(steps).items()}
    ratios = {
        f"{where}: {DUAL} / {name}": ratio(steps[DUAL], steps[name]) for name in skipped if name in steps
    }
    ratios = {name: r for name, r in ratios.items() if not name.endswith(f"/ {DUAL}") and "A/A" not in name}
    found["ratios"] |= ratios_json(ratios | {f"{where}: A/A noise": noise(steps)})
    for name, share in skipped.items():
        if "A/A" not in name and name != DUAL:
            gain = ratio(steps[DUAL], steps[name]).median
            decode = ratio(_whole[DUAL], _whole[name]).median
            found["speed"][f"{where}: {name}"] = {
                "step_ratio": gain, "decode_ratio": decode, "skip_ratio": share, "bound_ratio": 1 / (1 - share)
            }  # fmt: skip


def _accuracies(model: tr.Model, rules: dict[str, Any], config: Config) -> dict[str, Any]:
    """Exact answers of each arm, one token a step and by threshold."""
    items, found = held_out(config.problems), {}
    for label, commit in (("one token a step", tr.Quota()), ("threshold 0.9", tr.Threshold(0.9))):
        for name, skip in rules.items():
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
        inside = low <= score["exact"] <= high
        found[name] = {
            "verdict": "lossy" if inside else "different",
            "reason": f"{score['hits']} of {score['problems']} exact, dual cache's interval {low:.3f} to {high:.3f}, "
            f"{score['forwards']} forwards, skipped {score['skip_ratio']:.3f}",
        }
    return found


def _notes(found: dict[str, Any]) -> list[str]:
    """Bounds beside the speeds, and what fewer tokens a layer cost, in words."""
    lines = [
        f"{name}: a step {s['step_ratio']:.3f}x as fast, bound {s['bound_ratio']:.3f}x (skipped {s['skip_ratio']:.3f}), "
        f"a decode {s['decode_ratio']:.3f}x"
        for name, s in found["speed"].items()
    ]
    return lines + [
        f"one layer, {c['tokens']} tokens: {1e3 * c['seconds_median']:.3f} ms, efficiency {c['efficiency']:.2f}"
        for c in found["layer_costs"]
    ]


def _bars(found: dict[str, Any], builtin: str, same: bool) -> list[dict[str, Any]]:
    scores, speed = found["accuracy"], found["speed"]
    bars = [at_least("a skip that may skip nothing is the dual cache bit for bit", float(same), 1.0, "share")]
    for where, s in speed.items():
        if where.endswith((TUNED, RANKED)):
            bars.append(at_least(f"cached step, {where}", s["step_ratio"], FASTER))
    for name in (TUNED, RANKED):
        for label in ("one token a step", "threshold 0.9"):
            low, high = scores[f"{label}: {DUAL}"]["interval_95"]
            exact = scores[f"{label}: {name}"]["exact"]
            bars.append(at_least(f"accuracy, {label}: {name}", exact, low, "share"))
            bars.append(at_most(f"accuracy, {label}: {name}", exact, high, "share"))
    return bars


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("diffusion_skip", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
