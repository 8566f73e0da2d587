"""The record of an evaluation: what was asked, what each side scored, and sides against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinrun.records.bench_words import NONE

MODE_WORDS = {
    "end": "question at the end of the prompt that is pruned",
    "unseen": "question unseen when the context is pruned; it follows in the pruned cache",
}
Table = tuple[str, tuple[str, ...], list[list[str]]]
"""Title, heads, cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What `twinrun prune eval` found.

    Attributes:
        request: model, sides, settings and environment.
        cells: one a side, task, length and mode.
        overall: one a side and mode, over all tasks and lengths.
        pairs: sides against each other on the items that both answered; `task` and `length` are None over all.
    """

    request: dict[str, Any]
    cells: list[dict[str, Any]] = field(repr=False)
    overall: list[dict[str, Any]]
    pairs: list[dict[str, Any]] = field(repr=False)

    @property
    def passed(self) -> bool:
        """True unless a side failed for another reason than room."""
        return not any(cell["status"] == "failed" for cell in self.cells)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return {
            "request": self.request,
            "passed": self.passed,
            "overall": self.overall,
            "pairs": self.pairs,
            "cells": self.cells,
        }

    def to_markdown(self) -> str:
        """Return the tables and the notes as Markdown."""
        parts = [f"# {self.request['model']}"]
        for title, heads, rows in quality_tables(self.to_json()):
            parts.append(f"**{title}**\n\n{_markdown(heads, rows)}")
        parts.append("\n".join(f"- {note}" for note in quality_notes(self.to_json())))
        return "\n\n".join(parts) + "\n"


def quality_tables(record: dict[str, Any]) -> list[Table]:
    """Return all tables of a record: two a mode."""
    found: list[Table] = []
    for mode in record["request"]["modes"]:
        words = MODE_WORDS[mode]
        found.append((f"scores, {words}", *_scores(record, mode)))
        rows = [_pair(pair) for pair in record["pairs"] if pair["mode"] == mode and pair["task"] is None]
        if rows:
            found.append((f"against each other, {words}", PAIR_HEADS, rows))
    return found


NOTHING = 0.05
"""Score of the first side below which a task says nothing."""
PAIR_HEADS = ("side", "against", "difference", "95 % interval", "better / worse / same", "sign test")


def quality_notes(record: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know."""
    request = record["request"]
    notes = [
        f"{request['items']} items a task and length, seed {request['seed']}, greedy, batch {request['batch']}; "
        f"{request['dtype']}",
        "score: RULER's share of references found; LongBench's own metric of each task; in percent. In brackets: "
        "answers that are exact",
        "kept: mean over the layers of the prompt tokens in the cache after the prefill, then in the last layer",
        INTERVALS,
    ]
    first = request["sides"][0]["name"]
    cells = [c for c in record["cells"] if c["side"] == first and c["items"]]
    worst = {c["task"]: 0.0 for c in cells}
    for c in cells:
        worst[c["task"]] = max(worst[c["task"]], c["score"])
    lost = [task for task, best in worst.items() if best < NOTHING]
    if lost:
        notes.append(
            f"{first} is itself right in under {percent(NOTHING, 0)} % of {', '.join(lost)}: "
            "nothing can be lost there. The model cannot do it, or is asked otherwise than it was trained (--digits, "
            "--begin, --answer-tokens, --chat)"
        )
    failed = {
        (c["side"], c["task"], c["length"]): c["reason"] for c in record["cells"] if c["status"] != "done"
    }
    return notes + [
        f"{side}, {task} at {length:,} tokens: {why}" for (side, task, length), why in failed.items()
    ]


INTERVALS = (
    "95 % intervals: percentiles of 10,000 bootstrap samples of the items, drawn within each task and length, both "
    "sides on the same items; where all items agree the interval has no width and says nothing of other items. Sign "
    "test: exact, two-sided, of the items on which the sides differ"
)


def percent(value: float | None, places: int = 1) -> str:
    """A share in percent.

    Example:
        >>> percent(0.5), percent(None)
        ('50.0', '–')
    """
    return NONE if value is None else f"{100 * value:.{places}f}"


def _scores(record: dict[str, Any], mode: str) -> tuple[tuple[str, ...], list[list[str]]]:
    sides = [side["name"] for side in record["request"]["sides"]]
    cells = {(c["task"], c["length"], c["side"]): c for c in record["cells"] if c["mode"] == mode}
    rows = []
    for task in record["request"]["tasks"]:
        for length in record["request"]["lengths"]:
            shown = [_cell(cells[task, length, side]) for side in sides]
            rows.append([task, f"{length:,}", *shown])
    means = {c["side"]: c for c in record["overall"] if c["mode"] == mode}
    rows.append(["all", "all", *[_whole(means.get(side)) for side in sides]])
    kept = [_kept(means.get(side)) for side in sides]
    return ("task", "tokens", *sides), [*rows, ["kept", "", *kept]]


def _cell(cell: dict[str, Any]) -> str:
    if cell["status"] != "done":
        return str(cell["status"])
    return percent(cell["score"]) + ("" if cell["exact"] is None else f" ({percent(cell['exact'], 0)})")


def _whole(mean: dict[str, Any] | None) -> str:
    return (
        NONE if mean is None else f"{percent(mean['score'])} ({percent(mean['low'])}–{percent(mean['high'])})"
    )


def _kept(mean: dict[str, Any] | None) -> str:
    if mean is None or mean["mean_keep"] is None:
        return NONE
    return f"{percent(mean['mean_keep'], 0)} %, {percent(mean['last_keep'], 0)} %"


def _pair(pair: dict[str, Any]) -> list[str]:
    signed = [f"{100 * pair[key]:+.1f}" for key in ("difference", "low", "high")]
    counts = " / ".join(str(pair[key]) for key in ("better", "worse", "same"))
    return [
        pair["a"],
        pair["b"],
        signed[0],
        f"{signed[1]} to {signed[2]}",
        counts,
        f"p = {pair['sign_p']:.2g}",
    ]


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
