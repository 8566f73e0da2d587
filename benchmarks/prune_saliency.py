"""Which saliency chooses well, and where pruning `builtin:long` hurts at all: the recipe of its scorers rests on it.

Held-out retrieval texts, tokens chosen by the saliency of the right answer itself: by size or signed, of the answer's
loss or logit. Then one stage with a random choice, layer by layer. Exact answers with 95 % Wilson intervals; pruning
is simulated by masks. There is no bar: these are the numbers behind a choice.

  python benchmarks/prune_saliency.py                       some minutes on one core; need not be quiet
  python benchmarks/prune_saliency.py --quick --out x.json  a smoke test, seconds
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _record import run, say

import twinrun as tr
from twinrun.prune.losses import keep_value
from twinrun.prune.objective import seeded
from twinrun.prune.quality import exact_answers
from twinrun.prune.rows import Rows
from twinrun.prune.saliency import saliency
from twinrun.prune.samples import Sample
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import Scorer
from twinrun.prune.simulate import Score
from twinrun.prune.task_samples import TaskSamples, TaskSettings

ABOUT = "which saliency chooses well for builtin:long, and at which layers pruning hurts"
MODEL = "builtin:long"
KINDS = (("abs", "loss"), ("abs", "logit"), ("signed", "loss"), ("signed", "logit"))
Arm = Callable[[Rows], Score]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one measurement."""

    samples: int = field(default=150, metadata={"help": "held-out texts, three tasks in turn"})
    tokens: int = field(default=512, metadata={"help": "most tokens of a text"})
    keep: float = field(default=0.35, metadata={"help": "share that a single stage keeps"})
    layers: str = field(default="1,2,3,4", metadata={"help": "layers of the single stage"})
    start: str = field(default="<|endoftext|>", metadata={"help": "text before every prompt"})
    seed: int = field(default=7, metadata={"help": "of texts and random choices"})

    @classmethod
    def quick(cls) -> Config:
        """Sizes for a smoke test."""
        return cls(samples=3, tokens=256, layers="1,4")


def measure(config: Config) -> dict[str, Any]:
    """Answer behind every choice; return the measured part of the record."""
    torch.set_num_threads(1)
    model = tr.load(MODEL, dtype="float32")
    schedule = Schedule.of(Scorer.load(MODEL, model).schedule)
    settings = TaskSettings(
        source="retrieval", samples=config.samples, tokens=config.tokens, seed=config.seed, digits=5,
        begin=config.start, split="heldout",
    )  # fmt: skip
    made = TaskSamples(model, settings)
    samples = [made[i] for i in range(len(made))]
    chosen = {"whole prompt": rates(exact_answers(model, samples, None, at_random(config.seed)))}
    for name, arm in arms(model, samples, schedule.layers, config.seed).items():
        say(f"tokens chosen by {name}")
        chosen[name] = rates(exact_answers(model, samples, schedule, arm))
    stages = {}
    for layer in map(int, config.layers.split(",")):
        say(f"one stage at layer {layer}")
        alone = Schedule.of({layer: config.keep})
        stages[str(layer)] = rates(exact_answers(model, samples, alone, at_random(config.seed)))
    return {
        "model": repr(model),
        "schedule": {str(s.layer): s.keep for s in schedule.stages},
        "chosen": chosen,
        "one_random_stage": stages,
        "arms": {},
        "ratios": {},
        "notes": [f"{name}: {words(found)}" for name, found in chosen.items()]
        + [f"random at layer {layer} alone: {words(found)}" for layer, found in stages.items()],
        "bars": [],
    }


def arms(model: tr.Model, samples: Sequence[Sample], layers: Sequence[int], seed: int) -> dict[str, Arm]:
    """Every kind of saliency, then the blind choices."""
    found: dict[str, Arm] = {}
    for output in ("loss", "logit"):
        values = {
            one.sample.name: one.values
            for at in range(0, len(samples), 10)
            for one in saliency(model, samples[at : at + 10], layers, output=output)
        }
        for sign in (sign for sign, of in KINDS if of == output):
            found[f"{sign}, {output}"] = by_saliency(values, layers, sign, output)
    return {
        **found,
        "random": at_random(seed),
        "recency": lambda rows: lambda _l, _h: rows.padded.positions.float(),
    }


def by_saliency(values: Mapping[str, torch.Tensor], layers: Sequence[int], sign: Any, output: Any) -> Arm:
    """Choose by stored saliency."""

    def arm(rows: Rows) -> Score:
        def score(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            found = torch.zeros(hidden.shape[:2])
            for row, sample in enumerate(rows.samples):
                stored = values[sample.name][list(layers).index(layer)]
                found[row, rows.prompt[row]] = keep_value(stored, output=output, sign=sign)
            return found

        return score

    return arm


def at_random(seed: int) -> Arm:
    """Choose by chance, each sample alike in any batch."""

    def arm(rows: Rows) -> Score:
        draws = {s.name: seeded("random", seed, s.name) for s in rows.samples}
        return lambda _layer, hidden: torch.stack(
            [torch.rand(hidden.shape[1], generator=draws[s.name]) for s in rows.samples]
        )

    return arm


def rates(right: Mapping[str, bool]) -> dict[str, Any]:
    """Exact answers of each task with Wilson's 95 % interval."""
    found = {}
    for task in sorted({name.partition("/")[0] for name in right}):
        own = [ok for name, ok in right.items() if name.startswith(task + "/")]
        found[task] = {
            "hits": sum(own),
            "samples": len(own),
            "exact": sum(own) / len(own),
            "interval_95": wilson(own),
        }
    return found


def wilson(own: Sequence[bool], z: float = 1.959964) -> list[float]:
    """Wilson's score interval of a share."""
    n, p = len(own), sum(own) / len(own)
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)]


def words(found: Mapping[str, Any]) -> str:
    """Shares of exact answers in one line."""
    return ", ".join(f"{task} {rate['exact']:.0%}" for task, rate in found.items())


def main(argv: Sequence[str] | None = None) -> int:
    """0 done, 2 bad request."""
    return run("prune_saliency", ABOUT, Config, measure, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
