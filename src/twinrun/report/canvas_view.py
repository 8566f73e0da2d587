"""A trace of two diffusion runs in words and rows: what is wrong, where the runs part, what was skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinrun.report.words import seconds, short

SIDES = ("reference", "candidate")
MEANING = {
    "canvas ids": "the two sides do not have the same tokens in front of them.",
    "positions": "rows of scores or rotary positions are not those of the tokens they are taken for.",
    "mask": "other slots may be attended to than the row has tokens.",
    "commit set": "the same probabilities, another choice.",
    "tie flip": "the choice hangs on less than rounding moves. Either is right.",
    "numeric": "the probabilities are further apart than rounding explains.",
    "step count": "one side stopped before the other.",
    "skip decision": "tokens are skipped for a reason that is not their own.",
    "head input": "the head reads hidden states that no last layer has seen.",
    "keys": "what later steps attend to is not what was computed.",
    "mask id": "a mask was written as if it were a token.",
    "prompt": "what the user wrote was changed.",
    "canvas": "a decided token was decided again.",
    "progress": "a forward was spent and nothing was decided.",
}
"""What each kind of finding or divergence means, in one sentence."""


def headline(record: Mapping[str, Any]) -> dict[str, str]:
    """The first sentence of a report: `state` (good, tie, bad), `kind`, `sentence`, `meaning`."""
    blame, told = record["blame"], record["divergence"]
    if blame is not None:
        kind, sentence, state = blame["where"], blame["sentence"], "bad"
    elif told is not None:
        kind, sentence = told["kind"], told["sentence"]
        state = "tie" if kind == "tie flip" or told["by_design"] else "bad"
    else:
        until = "" if record["complete"] else " as far as the recording goes"
        count = len(record["sides"]["reference"]["steps"])
        kind, state = "no divergence", "good"
        sentence = f"The two runs commit the same tokens in the same steps{until}: {count} steps compared."
    return {"state": state, "kind": str(kind), "sentence": str(sentence), "meaning": MEANING.get(kind, "")}


def numbers(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures below the headline."""
    sides = [record["sides"][name] for name in SIDES if name in record["sides"]]
    same, count = _same_cells(sides)
    found = [
        {"number": f"{same}/{count}", "text": "tokens of the canvas are the same at the end", "state": ""}
    ]
    found.append(
        {
            "number": " / ".join(str(len(side["steps"])) for side in sides),
            "text": "forwards, " + " and ".join(SIDES[: len(sides)]),
            "state": "",
        }
    )
    for name, side in zip(SIDES, sides, strict=False):
        if side["skipped"]["steps"]:
            share = f"{100 * side['skipped']['skipped_share']:.0f} %"
            layers = f"{100 * side['skipped']['skipped_layers_share']:.0f} %"
            text = f"of the {name}'s tokens skipped, {layers} of its layers' work"
            found.append({"number": share, "text": text, "state": ""})
    if record["noise"] is not None:
        text = "noise: what rounding moves a probability by"
        found.append({"number": short(record["noise"]), "text": text, "state": ""})
    wrong = len(record["findings"])
    state = "bad" if wrong else "good"
    found.append({"number": str(wrong), "text": "things wrong in themselves", "state": state})
    return found


def histograms(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bars of the distribution of 1 - cosine of kept and skipped tokens, one figure a side that has cosines."""
    found = []
    for name in SIDES:
        told = (record["cosines"] or {}).get(name)
        if told is None:
            continue
        most = max(1, *told["kept"], *told["skipped"])
        bars = [
            {
                "label": _interval(told["edges"][i], told["edges"][i + 1]),
                "kept": kept,
                "skipped": skipped,
                "kept_height": round(100 * kept / most, 2),
                "skipped_height": round(100 * skipped / most, 2),
            }
            for i, (kept, skipped) in enumerate(zip(told["kept"], told["skipped"], strict=True))
        ]
        totals = [sum(told["kept"]), sum(told["skipped"])]
        means = [None if told[key] is None else f"{told[key]:.5f}" for key in ("mean_kept", "mean_skipped")]
        found.append({"side": name, "bars": bars, "totals": totals, "means": means})
    return found


def step_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a step and side, in order of steps: what the table shows without a script."""
    longest = max((len(side["steps"]) for side in record["sides"].values()), default=0)
    return [
        {"number": i, "cells": [_row(record["sides"].get(name), i) for name in SIDES]} for i in range(longest)
    ]


def cells(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The canvas of a side at its end, cut into its blocks."""
    side, other = (
        record["sides"][name],
        record["sides"].get("candidate" if name == "reference" else "reference"),
    )
    blocks: dict[int, dict[str, Any]] = {}
    for step in side["steps"]:
        blocks.setdefault(
            step["begin"], {"block": step["block"], "begin": step["begin"], "size": step["size"]}
        )
    found = []
    for begin, block in sorted(blocks.items()):
        at = range(max(0, begin - side["start"]), begin - side["start"] + block["size"])
        row = [
            {
                "position": side["start"] + i,
                "piece": side["canvas"][i]["piece"],
                "differs": other is not None and _id(other, i) != side["canvas"][i]["id"],
            }
            for i in at
            if i < len(side["canvas"])
        ]
        found.append({**block, "cells": row})
    return found


def place_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and how the trace was recorded, as pairs of name and text."""
    env, found = record["env"] or {}, []
    for name, side in record["sides"].items():
        settings = ", ".join(f"{k}={v}" for k, v in side["settings"].items() if v is not None)
        found.append((name, f"{side['runner']}; {settings}; finish: {side['finish'] or 'unknown'}"))
    for key in ("platform", "cpu", "cpu_count", "threads", "python", "commit"):
        if env.get(key) is not None:
            found.append((key.replace("_", " "), str(env[key])))
    packages = [f"{name} {version}" for name, version in (env.get("packages") or {}).items() if version]
    if packages:
        found.append(("packages", ", ".join(packages)))
    return [*found, ("recorded in", seconds(record["seconds"]))]


def _same_cells(sides: list[Mapping[str, Any]]) -> tuple[int, int]:
    if len(sides) < 2:
        return 0, 0
    pairs = list(zip(sides[0]["canvas"], sides[1]["canvas"], strict=False))
    return sum(a["id"] == b["id"] for a, b in pairs), len(pairs)


def _id(side: Mapping[str, Any], i: int) -> Any:
    return side["canvas"][i]["id"] if i < len(side["canvas"]) else None


def _interval(low: float, high: float) -> str:
    return (
        f"below {short(high)}"
        if low == 0
        else f"{short(low)} and up"
        if high >= 2
        else f"{short(low)} to {short(high)}"
    )


def _row(side: Mapping[str, Any] | None, i: int) -> dict[str, Any] | None:
    if side is None or i >= len(side["steps"]):
        return None
    step = side["steps"][i]
    sure = [p for p in step["confidence"] if p is not None]
    return {
        "where": f"block {step['block']}, step {step['block_step']}",
        "what": f"{'whole canvas' if step['full'] else 'part'}, {step['computed']} tokens",
        "commits": [[position, piece] for position, _token, piece in step["commits"][:4]],
        "more": max(0, len(step["commits"]) - 4),
        "surest": max(sure) if sure else None,
        "skipped": len(step["skipped"]),
    }
