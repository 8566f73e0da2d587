"""A trace as small JSON for the page's script: strings once, lists for objects, fewer digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twinrun.report.trace_pairs import SIDES, Place, Unit, divergence_unit, units


def pack(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script reads.

    Keys:
        strings: every piece of text once; other places hold its index.
        sides: runner, `steps` as [step, seconds, computed, position ids, cache, keys, first row], `rows` as
            [step index, position, token, piece, logprob, entropy, margin, [id, piece, prob, ...]]. A cache
            whose layers all agree is one number.
        units: [row of the reference or -1, row of the candidate or -1, position, state].
        divergence: null, or kind, step, position, and the index of its unit or null.
        curves: null, or positions, layers, error, angle (1 - cosine), noise.
    """
    strings: dict[str, int] = {}
    sides, starts = [], []
    for name in SIDES:
        packed, first = _side(record["sides"][name], strings)
        sides.append(packed)
        starts.append(first)
    paired = units(record)
    told = record["divergence"]
    return {
        "mode": record["mode"],
        "complete": bool(record["complete"]),
        "prompt": [_intern(piece, strings) for piece in record["prompt"]["pieces"]],
        "promptIds": list(record["prompt"]["ids"]),
        "sides": sides,
        "units": [_unit(unit, starts) for unit in paired],
        "divergence": told
        and {
            "kind": told["kind"],
            "step": told["step"],
            "position": told["position"],
            "unit": divergence_unit(record, paired),
        },
        "curves": _curves(record["curves"]),
        "strings": list(strings),
    }


def digits(value: float | None, count: int) -> float | int | None:
    """A number in `count` digits, whole numbers as such; null for what is unknown or no number.

    Example:
        >>> digits(0.123456, 3), digits(2.0, 3), digits(float("nan"), 3)
        (0.123, 2, None)
    """
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{count}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _side(side: Mapping[str, Any], strings: dict[str, int]) -> tuple[dict[str, Any], list[int]]:
    steps: list[list[Any]] = []
    rows: list[list[Any]] = []
    first: list[int] = []
    for index, step in enumerate(side["steps"]):
        cache = step["cache"]
        if cache and len(set(cache)) == 1:
            cache = cache[0]
        first.append(len(rows))
        what = (step["computed"], step["position_ids"], cache, step["keys"])
        steps.append([step["step"], digits(step["seconds"], 4), *what, len(rows)])
        rows += [_row(index, row, strings) for row in step["rows"]]
    layers = max((len(step["cache"] or ()) for step in side["steps"]), default=0)
    return {"runner": side["runner"], "steps": steps, "rows": rows, "layers": layers}, first


def _row(index: int, row: Mapping[str, Any], strings: dict[str, int]) -> list[Any]:
    top: list[Any] = []
    for token, piece, probability in row["top"] or ():
        top += [token, _intern(piece, strings), digits(probability, 5)]
    measured = [digits(row[key], 17) for key in ("logprob", "entropy", "margin")]
    return [index, row["position"], row["token"], _intern(row["piece"], strings), *measured, top]


def _unit(unit: Unit, starts: Sequence[Sequence[int]]) -> list[int]:
    def flat(place: Place | None, first: Sequence[int]) -> int:
        return -1 if place is None else first[place.step] + place.row

    rows = (flat(place, first) for place, first in zip((unit.reference, unit.candidate), starts, strict=True))
    return [*rows, unit.position, unit.state]


def _intern(text: str | None, strings: dict[str, int]) -> int | None:
    return None if text is None else strings.setdefault(text, len(strings))


def _curves(curves: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not curves or not curves["positions"]:
        return None
    return {
        "positions": curves["positions"],
        "layers": [str(layer) for layer in curves["layers"]],
        "error": [[digits(value, 4) for value in row] for row in curves["error"]],
        "angle": [
            [None if value is None else digits(max(0.0, 1.0 - value), 4) for value in row]
            for row in curves["cosine"]
        ],
        "noise": [digits(value, 4) for value in curves["noise"]],
    }
