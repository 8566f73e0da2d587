"""Answers put together: a cell for each side, task, length and mode; means over all; sides against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from twinrun.quality.paired import interval, paired
from twinrun.quality.settings import EvalSettings
from twinrun.quality.store import Place

Answers = Mapping[Place, Mapping[str, Any]]
Reasons = Mapping[tuple[str, str, int], Mapping[str, str]]
Lines = dict[tuple[str, int, int], Mapping[str, Any]]
"""Answers of a side in one mode, by task, length and index."""
Rows = list[dict[str, Any]]


def summarise(
    answers: Answers, reasons: Reasons, settings: EvalSettings, sides: Sequence[str]
) -> tuple[Rows, Rows, Rows]:
    """Return cells, means over all tasks and lengths of a mode, and sides in pairs; keys are in docs/prune-measures.md.

    A side that failed at some length has a mean over the rest, and pairs are made of items that both sides answered.
    """
    cells: Rows = []
    overall: Rows = []
    pairs: Rows = []
    for mode in settings.modes:
        lines = {side: _of_mode(answers, side, mode, settings) for side in sides}
        for task in settings.tasks:
            for length in settings.lengths:
                own = {side: _only(lines[side], task, length) for side in sides}
                for side in sides:
                    cells.append(_cell(side, task, length, mode, own[side], reasons, settings.seed))
                pairs += _pairs(own, mode, task, length, settings.seed, first_only=True)
        overall += [_mean(side, mode, lines[side], settings.seed) for side in sides if lines[side]]
        pairs += _pairs(lines, mode, None, None, settings.seed)
    return cells, overall, pairs


def _of_mode(answers: Answers, side: str, mode: str, settings: EvalSettings) -> Lines:
    found = {}
    for task in settings.tasks:
        for length in settings.lengths:
            for index in range(settings.items):
                line = answers.get((side, f"{task}/{length}/{mode}/{index}"))
                if line is not None:
                    found[task, length, index] = line
    return found


def _only(lines: Lines, task: str, length: int) -> Lines:
    return {place: line for place, line in lines.items() if place[:2] == (task, length)}


def _cell(
    side: str, task: str, length: int, mode: str, lines: Lines, reasons: Reasons, seed: int
) -> dict[str, Any]:
    why = reasons.get((side, task, length)) or reasons.get(("", task, length))
    status = "done" if why is None else why["status"]
    found = {"side": side, "task": task, "length": length, "mode": mode, "status": status}
    return {**found, "reason": None if why is None else why["reason"], **_numbers(lines, seed)}


def _mean(side: str, mode: str, lines: Lines, seed: int) -> dict[str, Any]:
    return {"side": side, "mode": mode, **_numbers(lines, seed)}


def _numbers(lines: Lines, seed: int) -> dict[str, Any]:
    """Mean score with its interval, share of exact answers, and what the caches held; None where there is nothing."""
    rows = list(lines.values())
    keys = ("score", "low", "high", "exact", "mean_keep", "last_keep", "prompt_tokens", "seconds")
    if not rows:
        return {"items": 0, **dict.fromkeys(keys)}
    scores = [row["scores"]["score"] for row in rows]
    low, high = interval(scores, [place[:2] for place in lines], seed)
    exact = [row["scores"]["exact"] for row in rows if "exact" in row["scores"]]
    held = [row for row in rows if row["cache_lengths"]]
    whole = [sum(row["cache_lengths"]) / len(row["cache_lengths"]) / row["cache_lengths"][0] for row in held]
    last = [row["cache_lengths"][-1] / row["cache_lengths"][0] for row in held]
    return {
        "items": len(rows),
        "score": _average(scores),
        "low": low,
        "high": high,
        "exact": _average(exact),
        "mean_keep": _average(whole),
        "last_keep": _average(last),
        "prompt_tokens": _average([row["prompt_tokens"] for row in rows]),
        "seconds": math.fsum(row["seconds"] for row in rows),
    }


def _pairs(
    lines: Mapping[str, Lines],
    mode: str,
    task: str | None,
    length: int | None,
    seed: int,
    *,
    first_only: bool = False,
) -> Rows:
    """Every side against the first, then, unless `first_only`, the others against each other."""
    names = list(lines)
    found = []
    for b, a in combinations(names, 2):
        shared = [place for place in lines[a] if place in lines[b]]
        if not shared or (first_only and b != names[0]):
            continue
        scores = [[lines[side][place]["scores"]["score"] for place in shared] for side in (a, b)]
        numbers = paired(scores[0], scores[1], [place[:2] for place in shared], seed)
        found.append({"a": a, "b": b, "mode": mode, "task": task, "length": length, **numbers})
    return found


def _average(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
