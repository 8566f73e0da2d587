"""What a pruned prompt costs `builtin:long` in answers, by who chooses the tokens: its own trained scorers, or another.

The three retrieval tasks that it was trained for, held-out texts, one third of the prompt left behind layer 3 (the
schedule of the shipped scorers). Every side answers the same items, with the question at the end of the prompt that is
pruned, and with the question unseen when the context is pruned; intervals are of paired differences. Answers are on
disk as soon as their batch is done: the same command goes on after a kill.

  python benchmarks/prune_quality.py                                about a quarter of an hour on one quiet core
  python benchmarks/prune_quality.py --quick --out x.json --work w  a smoke test, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from _record import RESULTS, at_least, at_most, run, say

import twinrun as tr
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import Scorer
from twinrun.quality.evaluate import evaluate
from twinrun.quality.settings import EvalSettings
from twinrun.quality.sides import pruned_side, stages_json
from twinrun.records.quality import Quality

ABOUT = "answers of builtin:long behind pruned prompts, by who chooses the tokens"
MODEL, WHOLE, LEARNED, ORACLE = "builtin:long", "none", "learned", "oracle"
TASKS = ("niah_single", "niah_multikey", "variable_tracking")
BLIND = ("random", "recency")
"""What learned scorers must beat clearly."""
OTHERS = (*BLIND, "norm", "attention", ORACLE)
MARGIN = 0.05
"""Of the interval's lower end, as a share of RULER's score."""
SHARE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    lengths: str = field(default="512,1024", metadata={"help": "tokens of an item, answer included"})
    items: int = field(default=100, metadata={"help": "items a task and length"})
    digits: int = field(default=5, metadata={"help": "digits of a number to find, as in its training"})
    answer_tokens: int = field(default=44, metadata={"help": "tokens an answer may have"})
    batch: int = field(default=10, metadata={"help": "items run together"})
    start: str = field(default="<|endoftext|>", metadata={"help": "text before every prompt"})
    seed: int = field(default=0, metadata={"help": "of items, intervals and the random selector"})
    work: str = field(
        default="", metadata={"help": "folder of the answers (benchmarks/partial/prune_quality)"}
    )

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(lengths="256", items=2, batch=2)

    @property
    def settings(self) -> EvalSettings:
        """The evaluation that is asked for."""
        shared = {k: v for k, v in asdict(self).items() if k not in ("lengths", "work")}
        return EvalSettings.of(
            {"tasks": TASKS, "lengths": [int(n) for n in self.lengths.split(",")], **shared}
        )


def sides(model: tr.Model, schedule: Schedule, seed: int) -> dict[str, Any]:
    """The shipped scorers first: the others are held against them."""
    learned = pruned_side(model, LEARNED, schedule, MODEL, seed=seed)
    others = {name: pruned_side(model, name, schedule, seed=seed) for name in OTHERS}
    return {LEARNED: learned, WHOLE: tr.KVCache(model), **others}


def measure(config: Config) -> dict[str, Any]:
    """Let every side answer; return the measured part of the record."""
    torch.set_num_threads(1)
    model = tr.load(MODEL, dtype="float32")
    schedule = Schedule.of(Scorer.load(MODEL, model).schedule)
    stages = stages_json(schedule)
    asked = sides(model, schedule, config.seed)
    home = Path(config.work) if config.work else RESULTS.parent / "partial" / "prune_quality"
    found = evaluate(
        asked,
        config.settings,
        out=home,
        resume=True,
        labels={name: {} if name == WHOLE else {"schedule": stages} for name in asked},
        on_progress=lambda done, total, what: say(f"{done:,} of {total:,}: {what}"),
    )
    return {
        "model": repr(model),
        "schedule": stages,
        "tasks": list(TASKS),
        "arms": {},
        "ratios": {},
        "overall": found.overall,
        "pairs": found.pairs,
        "cells": found.cells,
        "notes": notes(found),
        "bars": [
            *(bar for mode in config.settings.modes for bar in bars(found, mode)),
            at_most("cells that failed", sum(c["status"] != "done" for c in found.cells), 0, "cells"),
        ],
    }


def bars(found: Quality, mode: str) -> list[dict[str, Any]]:
    """Learned against blind choices, the oracle and the whole prompt, in one mode."""
    score = {row["side"]: row["score"] for row in found.overall if row["mode"] == mode}
    over = [
        at_least(
            f"{mode}: lower end of learned minus {name}, 95 %",
            gain(found, mode, name)[1],
            MARGIN,
            "points / 100",
        )
        for name in BLIND
    ]
    shares = [
        at_least(f"{mode}: learned over {name}", score[LEARNED] / score[name] if score[name] else None, SHARE)
        for name in (ORACLE, WHOLE)
    ]
    return over + shares


def gain(found: Quality, mode: str, name: str) -> tuple[float, float, float]:
    """How much more the learned choice is worth than another, over all tasks and lengths: mean, low, high."""
    pair = next(
        p
        for p in found.pairs
        if p["mode"] == mode and p["task"] is None and (p["a"], p["b"]) == (name, LEARNED)
    )
    return 0.0 - pair["difference"], 0.0 - pair["high"], 0.0 - pair["low"]  # no minus zero


def notes(found: Quality) -> list[str]:
    """One line a side and mode."""
    lines = []
    for row in found.overall:
        text = f"{row['mode']}, {row['side']}: {row['score']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
        if row["side"] != LEARNED:
            mean, low, high = (100 * x for x in gain(found, row["mode"], row["side"]))
            text += f"; learned is better by {mean:.1f} ({low:.1f} to {high:.1f}) points"
        lines.append(f"{text}; exact {row['exact']:.1%}; last stage keeps {row['last_keep']:.1%}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed, 2 bad request."""
    return run("prune_quality", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
