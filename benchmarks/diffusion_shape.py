"""Masked-diffusion decoding at the shape of a LLaDA of 0.3B (24 layers of 1,024, vocabulary 126,464), random weights.

A plain decode of 256 tokens is 256 forwards over the whole canvas, minutes on a CPU. What a forward costs depends on
numbers of tokens alone, so two steps of the middle block are timed for every cache, in turns, and multiplied by the
forwards of a whole decode: every number of seconds is an estimate and is called one. Random weights are never sure
(confidence is about 1 / vocabulary), so no threshold fires: the rows say how many tokens a step commits, by a quota.
What threshold is worth is for a trained model to say (diffusion_speed.py: the built-in one). Canvases of
256 and 512 tokens, blocks of 32 and 64, refresh never, every 4 and every 2 steps. Verdicts of `twinrun.verify` stand
beside the speeds; on random weights they say how far stale keys move the logits, not what that does to an answer.
Bars: dual cache with `--per-step` tokens a step at 256 tokens and blocks of 32 is at least 8 times plain; refreshed in
every step it is plain decoding. Whether a cache is inside the budget on random weights is no bar: it is said.

  python benchmarks/diffusion_shape.py                       the full measurement, some minutes on two cores, 6 GB
  python benchmarks/diffusion_shape.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _diffusion import PLAIN, StepCosts, Work, arms, forwards, runners, verdicts
from _record import at_least, ratios_json, run, say, timings_json
from _shapes import random_ids
from _skip import random_llada

import twinrun as tr
from twinrun.bench.timing import Timing, interleave, noise, ratio

ABOUT = "masked-diffusion decoding at a shape: cost of steps, and whole decodes estimated from them"
FASTER = 8.0
BUDGET = {"kl": 0.1}
"""No share of top tokens: among 126,464 nearly equal logits of random weights any rounding moves the first."""
ALWAYS = "dual, refresh every step"
KINDS: dict[str, dict[str, Any]] = {PLAIN: {}, "prefix": {"cache": "prefix"}, "dual": {"cache": "dual"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="0.3b-v126k", metadata={"help": "shape of the model"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    dtype: str = field(default="float32", metadata={"help": "of the weights"})
    threads: int = field(default=2, metadata={"help": "threads of torch"})
    prompt: int = field(default=64, metadata={"help": "tokens of the prompt"})
    room: int = field(
        default=256, metadata={"help": "tokens of the small canvas; the large one is twice that"}
    )
    block: int = field(
        default=32, metadata={"help": "tokens of the small block; the large one is twice that"}
    )
    per_step: int = field(default=4, metadata={"help": "tokens a step of the arms that commit several"})
    repeats: int = field(default=3, metadata={"help": "interleaved rounds"})
    judged: int = field(default=9, metadata={"help": "tokens that the verdicts cover"})
    seed: int = field(default=0, metadata={"help": "of weights and tokens"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shape="quick", prompt=8, room=16, block=8, repeats=2, judged=5)


def measure(config: Config) -> dict[str, Any]:
    """Time the steps, estimate the decodes, judge the caches; return the measured part of the record."""
    torch.set_num_threads(config.threads)
    say(f"building {config.shape} on {config.device}")
    dtype = getattr(torch, config.dtype)
    model = random_llada(config.shape, config.seed, device=config.device, dtype=dtype)
    ids = random_ids(config.prompt, model.vocab_size - 1, config.seed)
    found: dict[str, Any] = {"model": repr(model), "arms": {}, "ratios": {}, "rows": []}
    for room in (config.room, 2 * config.room):
        for block in (config.block, 2 * config.block):
            _sized(found, model, Work(prompts=[ids], room=room, block=block), config)
    text = ids[: config.prompt // 4] + random_ids(config.judged, model.vocab_size - 1, 1)
    start = len(text) - config.judged
    kinds = {
        **{n: how for n, how in KINDS.items() if n != PLAIN},
        ALWAYS: {"cache": "dual", "refresh_every": 1},
    }
    found["verdicts"] = verdicts(model, [text], [start], config.block, kinds, BUDGET)
    found["notes"] = [
        f"{r['room']}/{r['block']}, {r['per_step']} a step: {r['arm']}: {r['nfe_full']}+{r['nfe_block']} forwards, "
        f"{r['seconds_estimated']:.2f} s estimated, {r['tokens_per_second_estimated']:.2f} tokens/s, "
        f"{r['times_plain']:.2f}x plain"
        for r in found["rows"]
    ]
    name = f"{config.room}/{config.block}: dual, {config.per_step} a step"
    found["bars"] = [
        at_least(f"{name} against plain, estimated", _of(found["rows"], config, "dual"), FASTER),
        at_least(
            f"{ALWAYS}: identical to plain",
            float(found["verdicts"][ALWAYS]["verdict"] == "identical"),
            1.0,
            "share",
        ),
    ]
    return found


def _sized(found: dict[str, Any], model: tr.Model, work: Work, config: Config) -> None:
    """Time two steps of every cache, and estimate the decodes that are made of them."""
    made = runners(model, work.block, KINDS)
    say(f"{work.room} tokens in blocks of {work.block}: {config.repeats} rounds")
    runs: dict[str, list[Any]] = {}
    times = interleave(
        arms(made, work.sample),
        repeats=config.repeats,
        warmups=1 if config.device != "cpu" else 0,
        on_result=lambda name, result: runs.setdefault(name, []).append(result),
    )
    where = f"{work.room}/{work.block}"
    found["arms"] |= {f"{where}: {name}, two steps": t for name, t in timings_json(times).items()}
    found["ratios"] |= ratios_json({f"{where}: A/A noise, two steps": noise(times)})
    costs = {name: [StepCosts.of(each) for each in runs[name]] for name in KINDS}
    plain = Timing.of([each.seconds(work, 1) for each in costs[PLAIN]])
    for per_step in (1, config.per_step):
        for name in KINDS:
            for every in (None,) if name == PLAIN else (None, 4, 2):
                found["rows"].append(_row(name, work, costs[name], plain, per_step, every))


def _row(
    name: str, work: Work, costs: Sequence[StepCosts], plain: Timing, per_step: int, every: int | None
) -> dict[str, Any]:
    """One decode, estimated from the steps of each round."""
    timing = Timing.of([each.seconds(work, per_step, every) for each in costs])
    gain = ratio(plain, timing)
    full, later = forwards(work, per_step, every)
    if name == PLAIN:
        full, later = full + later, 0
    return {
        "arm": name if every is None else f"{name}, refresh every {every}", "room": work.room, "block": work.block,
        "per_step": per_step, "nfe_full": full, "nfe_block": later,
        "full_seconds": Timing.of([c.full for c in costs]).seconds_median,
        "later_seconds": Timing.of([c.later for c in costs]).seconds_median,
        "seconds_estimated": timing.seconds_median,
        "tokens_per_second_estimated": work.room / timing.seconds_median,
        "times_plain": gain.median, "times_plain_p10": gain.p10, "times_plain_p90": gain.p90,
    }  # fmt: skip


def _of(rows: Sequence[dict[str, Any]], config: Config, arm: str) -> float:
    wanted = (arm, config.room, config.block, config.per_step)
    return next(
        float(r["times_plain"]) for r in rows if (r["arm"], r["room"], r["block"], r["per_step"]) == wanted
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("diffusion_shape", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
