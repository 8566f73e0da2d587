"""The paper's Table 2 on this machine: prefill and end to end behind pruned prompts, by length and keep ratio.

The shape of Qwen2.5-0.5B in bfloat16, random weights, untrained scorers of the size that training makes, the paper's
schedule (from layer 4, every third) with keep ratios 0.9, 0.8 and 0.7, against whole prompts; all in turns, the whole
prompt twice (A/A). Bar: each prefill gains at least 90 % of what the counted operations allow. The verdicts are of
random weights and say nothing about a trained model's answers. The paper writes 128 tokens; fewer here, so that a
length takes less than seven minutes (4,096 tokens are the slowest), and a gain end to end is larger for it.

A length is on disk when it is done; the same command goes on with the next one.

  python benchmarks/prune_table2.py                       all lengths, about a quarter of an hour on two cores
  python benchmarks/prune_table2.py --minutes 1           one length a sitting; repeat until it says that none is left
  python benchmarks/prune_table2.py --quick --out x.json --work w
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _machine import Machine
from _record import RESULTS, at_least, run, say, write_atomically
from _shapes import build

import twinrun as tr
from twinrun.bench.prompt_pruning import prune_bench
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import Scorer
from twinrun.records.pruning import PAPER_KEEP
from twinrun.records.pruning_words import pruning_markdown

ABOUT = "Table 2 of SDTP: prefill and end to end behind pruned prompts, by length and keep ratio"
SHARE = 0.9
"""Of the gain that the counted operations allow."""
BUDGET_KL = 10.0
"""Nats. Random weights have no answers to lose: every choice of tokens is inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    shape: str = field(default="qwen2.5-0.5b", metadata={"help": "shape of the model"})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda"})
    lengths: str = field(default="1024,2048,4096", metadata={"help": "prompt tokens, separated by commas"})
    keep: str = field(default="0.9,0.8,0.7", metadata={"help": "keep ratio of a stage to the one before"})
    first: int = field(default=4, metadata={"help": "first layer that prunes, from 0"})
    every: int = field(default=3, metadata={"help": "layers between stages"})
    new_tokens: int = field(default=48, metadata={"help": "tokens every run is forced to write"})
    repeats: int = field(default=4, metadata={"help": "interleaved rounds"})
    seed: int = field(default=0, metadata={"help": "of weights, tokens and scorers"})
    minutes: float = field(
        default=0.0, metadata={"help": "begin no length after so many minutes; 0 is no limit"}
    )
    work: str = field(
        default="", metadata={"help": "folder of the lengths that are done (benchmarks/partial/prune_table2)"}
    )

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(shape="quick", lengths="48,64", first=1, every=1, new_tokens=3, repeats=2)


def measure(config: Config) -> dict[str, Any]:
    """Run the lengths that are not done yet; return the measured part of the record."""
    lengths = [int(n) for n in config.lengths.split(",")]
    began, done = time.monotonic(), {n: done_before(config, n) for n in lengths}
    open_lengths = [n for n in lengths if done[n] is None]
    model = build(config.shape, device=config.device, seed=config.seed) if open_lengths else None
    for sat, length in enumerate(open_lengths):
        if sat and config.minutes and time.monotonic() - began > 60 * config.minutes:
            break
        assert model is not None
        done[length] = one_length(config, model, length)
        write_atomically(place_of(config, length), json.dumps(done[length], indent=1) + "\n")
    found = [part for part in done.values() if part is not None]
    left = [n for n, part in done.items() if part is None]
    rows = [row for part in found for row in part["rows"]]
    record = {"request": found[0]["request"], "rows": rows}
    return {
        "rows": rows,
        "machine_by_length": {str(n): part["machine"] for n, part in done.items() if part is not None},
        "verdicts_passed": all(part["passed"] for part in found),
        "paper_keep": PAPER_KEEP,
        "arms": {},
        "ratios": {},
        "notes": [pruning_markdown(record), *([f"left: {left}; run the same command again"] if left else [])],
        "bars": [*map(bar, rows), at_least("lengths measured", len(found), len(lengths), "lengths")],
    }


def one_length(config: Config, model: tr.Model, length: int) -> dict[str, Any]:
    """Time every side at one length."""
    machine = Machine()
    found = prune_bench(
        sides(model, config),
        lengths=[length],
        new_tokens=config.new_tokens,
        repeats=config.repeats,
        prompts="ids",
        seed=config.seed,
        budget={"kl": BUDGET_KL},
        on_progress=lambda done, total, what: say(f"{done} of {total}: {what}"),
    ).to_json()
    return {"asked": asked(config, length), "machine": machine.to_json(), **found}


def sides(model: tr.Model, config: Config) -> dict[str, Any]:
    """The whole prompt, then a pruned side a keep ratio."""
    found: dict[str, Any] = {"none": tr.KVCache(model)}
    for keep in map(float, config.keep.split(",")):
        schedule = Schedule.geometric(len(model.layout.layers), keep, config.first, config.every)
        scorer = Scorer.new(model, schedule.layers, seed=config.seed).to(model.dtype)
        found[f"pruned {keep:g}"] = tr.Pruned(model, scorer, schedule=schedule)
    return found


def bar(row: Mapping[str, Any]) -> dict[str, Any]:
    """Prefill against the counted operations."""
    allowed = row["flops_allow"]
    name = (
        f"{row['length']} tokens, {row['side']}: prefill over the {allowed or 0:.2f}x that operations allow"
    )
    return at_least(name, row["share_of_flops"], SHARE)


def asked(config: Config, length: int) -> dict[str, Any]:
    """What the numbers of a length depend on."""
    return {**asdict(config), "lengths": length, "minutes": None, "work": None}


def place_of(config: Config, length: int) -> Path:
    """File of a length."""
    home = Path(config.work) if config.work else RESULTS.parent / "partial" / "prune_table2"
    return home / f"{length}.json"


def done_before(config: Config, length: int) -> dict[str, Any] | None:
    """What an earlier sitting measured with the same settings, or None."""
    path = place_of(config, length)
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found if found["asked"] == asked(config, length) else None


def main(argv: Sequence[str] | None = None) -> int:
    """0 all bars passed (or --quick), 1 a bar was missed or lengths are left, 2 bad request."""
    return run("prune_table2", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
