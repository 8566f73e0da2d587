"""Geometry and wording of the page: from a record to percentages and short sentences. No HTML here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twinrun.report.words import limits, short, speed_of, spread, times

HEAT_FULL = 2.5
"""Nats at which a token's shade is full."""


def heat(value: float | None) -> float:
    """Shade of a token from 0 to 1: the square root of its KL, full at `HEAT_FULL` nats."""
    return 0.0 if value is None else round(min(1.0, math.sqrt(max(0.0, value) / HEAT_FULL)), 3)


def ratio_meter(value: float | None, rule: float, most: float) -> dict[str, Any] | None:
    """Width of a ratio's bar and place of its rule line, in percent; a ratio far beyond is cut off."""
    if value is None:
        return None
    full = 1.25 * most
    return {
        "width": round(100 * min(value / full, 1.0), 2),
        "rule": round(100 * rule / full, 2),
        "over": value > rule,
        "cut": value > full,
        "text": times(value),
        "rule_text": f"rule: at most {rule:.2g}×",
    }


def ratio_meters(row: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Meters of the worst and the root mean square ratio of a verdict record."""
    worst, rms = limits(row)
    return ratio_meter(row.get("ratio_max"), worst, worst), ratio_meter(row.get("ratio_rms"), rms, worst)


def speed_meter(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Bar of the speed-up with its spread on a logarithmic scale that all rows of the table share."""
    speed = speed_of(row)
    if speed is None:
        return None
    top = max((float(s["speed_up_p90"]) for r in rows if (s := speed_of(r)) is not None), default=1.0)
    scale = math.log10(max(top, 2.0)) * 1.04

    factor, around = spread(*(speed[f"speed_up_{key}"] for key in ("median", "p10", "p90"))).split(" ")

    def at(value: float) -> float:
        return round(100 * min(max(math.log10(max(value, 1e-9)) / scale, 0.0), 1.0), 2)

    return {
        "width": at(speed["speed_up_median"]),
        "low": at(speed["speed_up_p10"]),
        "high": at(speed["speed_up_p90"]),
        "text": factor,
        "spread": around.strip("()"),
    }


def witnesses(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the two witnesses said about one verdict record."""
    ratio, sweep = verdict.get("ratio_max"), verdict["sweep"]
    worst, rms = limits(verdict)
    over = ratio is not None and (ratio > worst or verdict["ratio_rms"] > rms)
    said = [
        {
            "name": "ratio",
            "numbers": f"{times(ratio)} worst, {times(verdict.get('ratio_rms'))} mean square",
            "rule": f"at most {worst:.2g}× and {rms:.2g}×",
            "convicts": over,
            "text": "convicts" if over else ("not heard" if ratio is None else "lets it pass"),
        }
    ]
    heard = sweep["gap"] is not None
    convicts = heard and sweep["gap"] > sweep["allowed"]
    beyond = f"convicts: {times(sweep['gap'] / sweep['allowed'])} beyond rounding" if convicts else ""
    said.append(
        {
            "name": "sweep",
            "numbers": f"{short(sweep['gap'])} nats in {sweep['high']}" if heard else str(sweep["why_not"]),
            "rule": f"rounding explains {short(sweep['allowed'])} nats" if heard else "",
            "convicts": convicts,
            "text": beyond or ("lets it pass" if heard else "not heard"),
        }
    )
    return said


def tips(record: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """What hover and focus show: for each token of each text, the alternatives of both sides."""
    found = []
    for text in (record.get("contrast") or {}).get("texts", ()):
        rows = zip(text["tokens"], text["kl"], text["expert_top"], text["amateur_top"], strict=True)
        found.append(
            [
                {
                    "token": token,
                    "position": text["start"] + i,
                    "kl": kl,
                    "expert": [[name, math.exp(p)] for name, p in expert or ()],
                    "amateur": [[name, math.exp(p)] for name, p in amateur or ()],
                }
                for i, (token, kl, expert, amateur) in enumerate(rows)
            ]
        )
    return found


def tiles(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The page's first lines: a number and what it counts."""
    rows = [(t["dtype"], row) for t in record["twins"] for row in t["rows"] if row["verdict"] != "reference"]
    clean = sum(row["verdict"] != "different" for _, row in rows)
    caught = sum(bool(fault["caught"]) for fault in record["faults"])
    found = [
        {
            "number": f"{clean}/{len(rows)}",
            "text": "fast paths pass as the same model",
            "state": "good" if clean == len(rows) else "bad",
        }
    ]
    timed = [(speed_of(row), dtype, row) for dtype, row in rows if speed_of(row) is not None]
    if timed:
        best = max(timed, key=lambda item: float((item[0] or {})["speed_up_median"]))
        number = times((best[0] or {})["speed_up_median"])
        found.append(
            {
                "number": number,
                "text": f"{best[2]['candidate']}, {best[1]}, {best[2]['verdict']}",
                "state": "",
            }
        )
    contrast = record.get("contrast") or {}
    if "texts" in contrast:
        count, right = len(contrast["texts"]), contrast["right"]
        number = f"{right['expert']} : {right['amateur']}"
        found.append({"number": number, "text": f"expert : amateur, right answers of {count}", "state": ""})
    found.append(
        {
            "number": f"{caught}/{len(record['faults'])}",
            "text": "planted faults caught",
            "state": "good" if caught == len(record["faults"]) else "bad",
        }
    )
    return found
