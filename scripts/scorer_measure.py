"""What scorers of `builtin:long` are worth on held-out texts: predictions, needles against noise, exact answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from builtin_measure import wilson
from scorer_recipe import ScorerRecipe

from twinrun.models.model import Model
from twinrun.prune.objective import seeded
from twinrun.prune.protection import Protection
from twinrun.prune.quality import exact_answers, layer_quality
from twinrun.prune.rows import Rows
from twinrun.prune.samples import Sample, Samples, each
from twinrun.prune.scorer import Scorer
from twinrun.prune.simulate import Score, simulate
from twinrun.prune.targets import Targets

Arm = Callable[[Rows], Score]


def task_of(sample: Sample) -> str:
    """The task that a sample is of."""
    return sample.name.partition("/")[0]


def measure(
    model: Model, scorer: Scorer, held: Samples, targets: Targets, recipe: ScorerRecipe
) -> dict[str, Any]:
    """Every number of the card."""
    samples, schedule = list(each(held)), recipe.schedule
    by_task = {
        task: [asdict(q) for q in layer_quality(model, own, targets, schedule, scorer.score)]
        for task in sorted({task_of(s) for s in samples})
        for own in [[s for s in samples if task_of(s) == task]]
    }
    exact = {}
    for name, arm in arms(scorer, targets).items():
        right = exact_answers(model, samples, None if name == "whole prompt" else schedule, arm)
        exact[name] = _rates(right)
    return {
        "held_out_samples": len(samples),
        "prediction": by_task,
        "kept": {task: kept_shares(model, scorer, samples, task, recipe) for task in NEEDLES},
        "exact": exact,
    }


def arms(scorer: Scorer, targets: Targets) -> dict[str, Arm]:
    """Ways to choose tokens, the whole prompt first."""

    def learned(_rows: Rows) -> Score:
        return scorer.score

    def at_random(rows: Rows) -> Score:
        draws = {s.name: seeded("random", s.name) for s in rows.samples}
        return lambda _layer, hidden: torch.stack(
            [torch.rand(hidden.shape[1], generator=draws[s.name]) for s in rows.samples]
        )

    def recent(rows: Rows) -> Score:
        return lambda _layer, _hidden: rows.padded.positions.float()

    def oracle(rows: Rows) -> Score:
        def score(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            found = torch.zeros(hidden.shape[:2])
            for row, sample in enumerate(rows.samples):
                found[row, rows.prompt[row]] = targets.of(sample)[targets.layers.index(layer)].abs()
            return found

        return score

    return {
        "whole prompt": learned,
        "random": at_random,
        "recency": recent,
        "learned": learned,
        "oracle": oracle,
    }


NEEDLES = {"niah_single": "One of the special magic", "variable_tracking": "VAR "}
"""How a sentence that matters begins, in the tasks that hide it in noise."""


@torch.no_grad()
def kept_shares(
    model: Model, scorer: Scorer, samples: list[Sample], task: str, recipe: ScorerRecipe
) -> dict[str, float]:
    """Share of the tokens of needle sentences, and of noise, that the last stage keeps; protected tokens left out."""
    counts = {"needle": [0, 0], "noise": [0, 0]}
    for sample in (s for s in samples if task_of(s) == task):
        rows = Rows.of([sample], model)
        done = simulate(model, rows, recipe.schedule, Protection(), scorer.score)
        first, last = recipe.schedule.layers[0], recipe.schedule.layers[-1]
        is_needle = needle_tokens(model, sample, NEEDLES[task])
        for at in done.choice[first][0].nonzero()[:, 0].tolist():
            kind = counts["needle" if is_needle[at] else "noise"]
            kind[0] += bool(done.kept[last][0, at])
            kind[1] += 1
    return {name: kept / max(seen, 1) for name, (kept, seen) in counts.items()}


def needle_tokens(model: Model, sample: Sample, begin: str) -> list[bool]:
    """For each prompt token, whether it belongs to a sentence that begins so; the text is read off the tokens."""
    pieces = [model.tokenizer.decode([i]) for i in sample.prompt]
    text, marks = "".join(pieces), []
    at = text.find(begin)
    spans = []
    while at >= 0:
        end = text.find(".", at)
        spans.append((at, end if end >= 0 else len(text)))
        at = text.find(begin, spans[-1][1])
    place = 0
    for piece in pieces:
        marks.append(any(a <= place + len(piece) - 1 and place < b + 1 for a, b in spans))
        place += len(piece)
    return marks


def _rates(right: dict[str, bool]) -> dict[str, Any]:
    """Exact answers of each task with Wilson's interval."""
    found: dict[str, Any] = {}
    for task in sorted({name.partition("/")[0] for name in right}):
        own = [ok for name, ok in right.items() if name.startswith(task + "/")]
        low, high = wilson(sum(own), len(own))
        found[task] = {"exact": sum(own) / len(own), "interval_95": [low, high], "samples": len(own)}
    return found
