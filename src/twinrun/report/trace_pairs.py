"""Rows of a trace's two sides that belong together, and the pair at which they part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIDES = ("reference", "candidate")

SAME, DIFFER, ALONE, UNKNOWN = 0, 1, 2, 3
"""States of a unit: both sides say the same token, another one, only one side has a row, nothing recorded."""

STATE_WORDS = ("same token", "different tokens", "one side only", "no token recorded")


@dataclass(frozen=True, slots=True)
class Place:
    """A row of one side: `step` and `row` are indices into the record's lists."""

    step: int
    row: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows of the two sides that belong together, either may be missing; the page selects one at a time."""

    reference: Place | None
    candidate: Place | None
    position: int
    state: int


def said(row: Mapping[str, Any] | None, mode: str) -> int | None:
    """The token that a side's row stands for: what it committed, or, forced, the token it finds likeliest."""
    if row is None:
        return None
    if mode == "forced" and row.get("top"):
        found: int | None = row["top"][0][0]
        return found
    return row.get("token")


def row_at(record: Mapping[str, Any], side: str, place: Place | None) -> Mapping[str, Any] | None:
    """The row of a side at a place, or None."""
    if place is None:
        return None
    found: Mapping[str, Any] = record["sides"][side]["steps"][place.step]["rows"][place.row]
    return found


def units(record: Mapping[str, Any]) -> list[Unit]:
    """Rows of both sides, paired: the n-th with the n-th when running free, by position when forced.

    Running free, each side commits its own tokens in order, and a wrong position is a finding; forced, the
    sides may cut one text into different steps. The n-th time a position is scored pairs with the n-th.
    """
    places = [list(_places(record, side)) for side in SIDES]
    if record["mode"] == "free":
        count = max(map(len, places))
        pairs = [tuple(p[i][1] if i < len(p) else None for p in places) for i in range(count)]
    else:
        keyed = [dict(_numbered(found)) for found in places]
        keys = sorted(keyed[0].keys() | keyed[1].keys())
        pairs = [(keyed[0].get(key), keyed[1].get(key)) for key in keys]
    return [_unit(record, left, right) for left, right in pairs]


def divergence_unit(record: Mapping[str, Any], found: Sequence[Unit]) -> int | None:
    """Index of the unit where the record says the sides part; None without one, or when no row is near it."""
    told = record["divergence"]
    if told is None or not found:
        return None
    step, position = told["step"], told["position"]
    steps = [{_step_number(record, side, unit) for side in SIDES} - {None} for unit in found]
    at_step = [i for i, numbers in enumerate(steps) if step is not None and step in numbers]
    at_position = [i for i, unit in enumerate(found) if unit.position == position]
    both = [i for i in at_position if i in set(at_step)]
    ordered = at_step or at_position if record["mode"] == "free" else at_position or at_step
    if both or ordered:
        return (both or ordered)[0]
    later = [i for i, unit in enumerate(found) if position is not None and unit.position >= position]
    return later[0] if later else (len(found) - 1 if step is not None else None)


def _places(record: Mapping[str, Any], side: str) -> Iterator[tuple[int, Place]]:
    for i, step in enumerate(record["sides"][side]["steps"]):
        for j, row in enumerate(step["rows"]):
            yield row["position"], Place(i, j)


def _numbered(places: Sequence[tuple[int, Place]]) -> Iterator[tuple[tuple[int, int], Place]]:
    """Key each place by its position and how often that position came before."""
    seen: dict[int, int] = {}
    for position, place in places:
        seen[position] = seen.get(position, -1) + 1
        yield (position, seen[position]), place


def _unit(record: Mapping[str, Any], left: Place | None, right: Place | None) -> Unit:
    rows = row_at(record, "reference", left), row_at(record, "candidate", right)
    position = next(row["position"] for row in rows if row is not None)
    if rows[0] is None or rows[1] is None:
        return Unit(left, right, position, ALONE)
    mine, other = said(rows[0], record["mode"]), said(rows[1], record["mode"])
    unknown = mine is None or other is None
    return Unit(left, right, position, UNKNOWN if unknown else (SAME if mine == other else DIFFER))


def _step_number(record: Mapping[str, Any], side: str, unit: Unit) -> int | None:
    place: Place | None = getattr(unit, side)
    return None if place is None else int(record["sides"][side]["steps"][place.step]["step"])
