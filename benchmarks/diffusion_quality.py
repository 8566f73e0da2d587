"""What caches, refreshes and commit rules do to the answers of `builtin:diffusion`, on held-out problems.

Exact answers with 95 % Wilson intervals for every cache, every `refresh_every` and every commit rule, one token a step,
by threshold and by factor, in one block and in small ones; forwards beside them; and what `twinrun.verify` says of each
cache. Decoding stops early: what stands behind the end of a text is no answer. Speeds are not measured here, so the
machine need not be quiet.
Bars: refreshing in every step is plain decoding, token for token; with a refresh every 2 steps no cache falls below
the 95 % interval of plain decoding.

  python benchmarks/diffusion_quality.py                       the full measurement, some minutes on one core
  python benchmarks/diffusion_quality.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from _diffusion import PLAIN, RULES, all_inside, verdicts
from _record import at_least, ratios_json, run, say, timings_json
from _skip import FIRST, accuracy, held_out, prompts

import twinrun as tr
from twinrun.bench.timing import interleave, noise

ABOUT = "answers of the built-in diffusion model under every cache, refresh and commit rule"
EVERY: tuple[int | None, ...] = (1, 2, 4, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    threads: int = field(default=1, metadata={"help": "threads of torch"})
    problems: int = field(default=200, metadata={"help": "held-out problems of one step"})
    room: int = field(default=32, metadata={"help": "tokens of a canvas"})
    block: int = field(default=32, metadata={"help": "tokens of a block"})
    small: int = field(default=8, metadata={"help": "tokens of the small blocks"})
    judged: int = field(default=24, metadata={"help": "texts that verdicts cover"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(problems=2, room=16, block=16, judged=2)


def arms() -> dict[str, dict[str, Any]]:
    """Plain, and both caches with every refresh; a single block has nothing behind it, so there prefix is dual."""
    found: dict[str, dict[str, Any]] = {PLAIN: {}}
    for cache in ("prefix", "dual"):
        for every in EVERY:
            word = "never" if every is None else f"every {every}"
            found[f"{cache}, refreshed {word}"] = {"cache": cache, "refresh_every": every}
    return found


def measure(config: Config) -> dict[str, Any]:
    """Answer the problems under every arm; return the measured part of the record."""
    torch.set_num_threads(config.threads)
    model = tr.load("builtin:diffusion", dtype="float32")
    items = held_out(config.problems)
    scores: dict[str, dict[str, Any]] = {}
    for block in (config.block, config.small):
        for name, how in arms().items():
            if block == config.block == config.room and name.startswith("prefix"):
                continue  # one block: the same columns as dual
            for rule, commit in RULES.items():
                say(f"blocks of {block}: {name}{rule}")
                runner = tr.Diffusion(model, block_length=block, commit=commit, **how)
                scores[f"{block}: {name}{rule}"] = accuracy(runner, items, config.room)
    found = _judged(model, config)
    same = _refreshed_always(model, config)
    return {
        "model": repr(model),
        "first_problem": FIRST,
        "accuracy": scores,
        "verdicts": found,
        **_timed(model, config),
        "notes": _notes(scores),
        "bars": _bars(scores, same, found),
    }


def _judged(model: tr.Model, config: Config) -> dict[str, Any]:
    """Verdicts on every cache with teacher forcing, one token a step, on plain decoding's own texts."""
    asked = prompts(model, held_out(config.judged))
    plain = tr.Diffusion(model, block_length=config.block).generate(asked, config.room)
    rows = [[*p, *t] for p, t in zip(asked, plain.tokens, strict=True)]
    found = {}
    for block in (config.block, config.small):
        kinds = {
            name: how
            for name, how in arms().items()
            if name != PLAIN and not (block == config.block == config.room and name.startswith("prefix"))
        }
        part = verdicts(model, rows, [len(p) for p in asked], block, kinds)
        found |= {f"{block}: {name}": verdict for name, verdict in part.items()}
    return found


def _refreshed_always(model: tr.Model, config: Config) -> bool:
    """Whether a refresh in every step gives plain decoding's tokens, under every rule."""
    asked = prompts(model, held_out(config.judged))
    for commit in RULES.values():
        made = [
            tr.Diffusion(model, block_length=config.small, commit=commit, **how)
            for how in ({}, {"cache": "prefix", "refresh_every": 1}, {"cache": "dual", "refresh_every": 1})
        ]
        plain, *cached = (runner.generate(asked, config.room).canvases for runner in made)
        if any(each != plain for each in cached):
            return False
    return True


def _timed(model: tr.Model, config: Config) -> dict[str, Any]:
    """Seconds of a decode, for orientation: this record is about answers."""
    asked = prompts(model, held_out(1))
    calls = {
        name: partial(tr.Diffusion(model, block_length=config.block, **how).generate, asked, config.room)
        for name, how in arms().items()
        if name in (PLAIN, "dual, refreshed never")
    }
    times = interleave(calls, repeats=3)
    return {"arms": timings_json(times), "ratios": ratios_json({"A/A noise": noise(times)})}


def _notes(scores: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{name}: {s['hits']} of {s['problems']} exact ({s['interval_95'][0]:.3f} to {s['interval_95'][1]:.3f}), "
        f"{s['forwards']} forwards"
        for name, s in scores.items()
    ]


def _bars(scores: dict[str, Any], same: bool, found: dict[str, Any]) -> list[dict[str, Any]]:
    bars = [at_least("a refresh in every step is plain decoding, token for token", float(same), 1.0, "share")]
    for name, score in scores.items():
        if "refreshed every 2" in name:
            block, rule = name.split(": ")[0], name.partition("every 2")[2]
            low = scores[f"{block}: {PLAIN}{rule}"]["interval_95"][0]
            bars.append(at_least(f"exact answers, blocks of {name}", score["exact"], low, "share"))
    bars.append(all_inside(found))
    return bars


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("diffusion_quality", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
