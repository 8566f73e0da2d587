"""A trace in words and rows, once for the page and the terminal: what parts, where, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from twinrun.report.trace_pairs import ALONE, DIFFER, SAME, SIDES, units
from twinrun.report.words import seconds, short, times

MEANING: dict[str, str] = {
    "input ids": "the two sides were not given the same tokens; no number below this can be compared.",
    "positions": "the same token stands at two positions; no number below this can be compared.",
    "shapes": "the two sides hold tensors of two shapes.",
    "mask": "a query of one side may attend to keys that the other side hides.",
    "cache length": "the caches do not hold the same number of tokens.",
    "step count": "one side stopped before the other.",
    "tie flip": "the two likeliest tokens lie closer together than rounding moves them. Either is right.",
    "numeric divergence": "the same inputs, and numbers further apart than rounding explains.",
}
"""What each kind of divergence means, in one sentence."""


def headline(record: Mapping[str, Any]) -> dict[str, str]:
    """The first sentence of a report: `state` (good, tie, bad), `kind`, `sentence`, `meaning`."""
    told = record["divergence"]
    if told is None:
        until = "" if record["complete"] else " as far as the recording goes"
        paired = units(record)
        count = sum(unit.state != ALONE for unit in paired)
        apart = sum(unit.state == DIFFER for unit in paired)
        if apart:
            return {
                "state": "tie",
                "kind": "not judged",
                "sentence": f"The record names no divergence, but {apart} of {count} tokens differ.",
                "meaning": "",
            }
        return {
            "state": "good",
            "kind": "no divergence",
            "sentence": f"The two runs do not part{until}: {count} {_plural(count, 'position')} compared.",
            "meaning": "",
        }
    kind = str(told["kind"])
    return {
        "state": "tie" if kind == "tie flip" else "bad",
        "kind": kind,
        "sentence": str(told["sentence"] or f"The two runs part {where(told)}."),
        "meaning": MEANING.get(kind, ""),
    }


def where(told: Mapping[str, Any]) -> str:
    """A place in words: `at step 12, position 57`, with what is known of it."""
    parts = [f"{name} {told[name]}" for name in ("step", "position") if told.get(name) is not None]
    return f"at {', '.join(parts)}" if parts else "at an unknown place"


def numbers(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures below the headline: a number, its unit or none, and what it says."""
    told, verdict = record["divergence"] or {}, record["verdict"]
    paired = units(record)
    same = sum(unit.state == SAME for unit in paired)
    what = "committed tokens are the same" if record["mode"] == "free" else "likeliest tokens are the same"
    compared = sum(unit.state != ALONE for unit in paired)
    found = [{"number": f"{same}/{compared}", "text": what, "state": ""}]
    for key, text in (
        ("margin", "margin between the two likeliest tokens, where the sides part"),
        ("noise", "noise: what rounding moves that margin by"),
    ):
        if told.get(key) is not None:
            found.append({"number": short(told[key]), "text": text, "state": ""})
    if told.get("ratio") is not None:
        state = "" if told["kind"] == "tie flip" else "bad"
        found.append({"number": times(told["ratio"]), "text": "of what rounding explains", "state": state})
    if verdict is not None:
        ratio = verdict.get("ratio_max")
        text = "verdict" if ratio is None else f"verdict, error ratio {times(ratio)}"
        state = "bad" if verdict["verdict"] == "different" else "good"
        found.append({"number": str(verdict["verdict"]), "text": text, "state": state})
    return found


def blame_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the blame table in execution order: `over` when beyond the noise, `first` on the one to blame."""
    blame = record["blame"] or {}
    rows: list[Mapping[str, Any]] = list(blame.get("table") or ())
    over = [_over(row) for row in rows]
    named = [i for i, row in enumerate(rows) if blame.get("module") and row["module"] == blame["module"]]
    first = named[0] if named else (over.index(True) if any(over) else None)
    top = max((_decades(row) for row in rows), default=0.0)
    return [
        {
            **row,
            "number": i + 1,
            "over": over[i],
            "first": i == first,
            "ratio": _ratio(row),
            "width": round(100 * _decades(row) / max(top, 1.0), 1),
        }
        for i, row in enumerate(rows)
    ]


def layer_rows(record: Mapping[str, Any], position: int | None = None) -> list[dict[str, Any]]:
    """Per-layer numbers at a position: layer, error, 1 - cosine, noise, and `over`.

    Args:
        record: the trace; without curves the list is empty.
        position: absolute; a position without a curve, or None, takes the last one before it, else the first.
    """
    curves = record["curves"]
    if not curves or not curves["positions"]:
        return []
    places: list[int] = curves["positions"]
    before = [i for i, place in enumerate(places) if position is not None and place <= position]
    at = max(before, key=lambda i: places[i]) if before else 0
    found = []
    for i, layer in enumerate(curves["layers"]):
        error, cosine, noise = curves["error"][at][i], curves["cosine"][at][i], curves["noise"][i]
        angle = None if cosine is None else max(0.0, 1.0 - cosine)
        over = error is not None and noise is not None and error > noise
        found.append(
            {
                "layer": layer,
                "position": places[at],
                "error": error,
                "angle": angle,
                "noise": noise,
                "over": over,
            }
        )
    return found


def around(count: int, centre: int | None, reach: int = 5) -> range:
    """Indices from `reach` before to `reach` after a centre; the first of them without a centre."""
    if centre is None:
        return range(min(count, 2 * reach + 1))
    return range(max(0, centre - reach), min(count, centre + reach + 1))


def shape(side: Mapping[str, Any]) -> str:
    """How a side moves over the positions, in a few words: what the map should look like."""
    steps = [step["computed"] for step in side["steps"] if step["computed"] is not None]
    total = sum(last - first + 1 for first, last in steps)
    forwards = f"{len(side['steps']):,} {_plural(len(side['steps']), 'forward')}"
    return f"{forwards}, {total:,} {_plural(total, 'position')}" if steps else forwards


def place_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and how the trace was recorded, as pairs of name and text."""
    env = record["env"] or {}
    found = []
    for name in SIDES:
        side = record["sides"][name]
        count = len(side["steps"])
        text = f"{side['runner']}, {count:,} {_plural(count, 'step')}"
        found.append((name, f"{text}, finish: {side['finish'] or 'unknown'}"))
    for key in ("platform", "cpu", "cpu_count", "threads", "python", "commit"):
        if env.get(key) is not None:
            dirty = " (with changes)" if key == "commit" and env.get("dirty") else ""
            found.append((key.replace("_", " "), f"{env[key]}{dirty}"))
    if "gpus" in env:
        found.append(("devices", ", ".join(map(str, env["gpus"] or ())) or "no GPU"))
    packages = [f"{name} {version}" for name, version in (env.get("packages") or {}).items() if version]
    if packages:
        found.append(("packages", ", ".join(packages)))
    return [*found, ("recorded in", seconds(record["seconds"]))]


def _over(row: Mapping[str, Any]) -> bool:
    return row["error_out"] is not None and row["noise"] is not None and row["error_out"] > row["noise"]


def _ratio(row: Mapping[str, Any]) -> float | None:
    return row["error_out"] / row["noise"] if row["error_out"] is not None and row["noise"] else None


def _decades(row: Mapping[str, Any]) -> float:
    """Powers of ten by which a module's error is beyond its noise, 0 when inside."""
    ratio = _ratio(row)
    return max(0.0, math.log10(ratio)) if ratio else 0.0


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
