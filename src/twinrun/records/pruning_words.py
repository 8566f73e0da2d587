"""How a sweep over pruned prompts is worded: the same tables and notes for terminal and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinrun.records.bench_notes import notes
from twinrun.records.bench_words import NONE, seconds, size
from twinrun.records.pruning import PAPER_KEEP

Row = Mapping[str, Any]
Table = tuple[str, tuple[str, ...], list[list[str]]]
SPEED = ("prompt", "side", "verdict", "prefill, times as fast", "end to end, times as fast")
TIME = ("prompt", "side", "prefill", "decode", "total", "kept", "mean keep", "mean keep²", "KL")
COST = ("prompt", "side", "FLOPs", "allow", "reached", "peak memory", "cache", "paper")


def pruning_tables(record: Row) -> list[Table]:
    """Return the three tables: title, heads, cells."""
    first = record["request"]["runners"][0]["name"]
    found: dict[str, list[list[str]]] = {"speed": [], "time": [], "cost": []}
    before = None
    for row in record["rows"]:
        place = f"{row['length']:,}"
        if row["length"] != before:
            base = row["baseline"]
            found["speed"] += [
                [place, first, _word(base), *["1" if _timed(base) else NONE] * 2],
                *_again(place, first, row),
            ]
            found["time"].append([place, first, *_times(base)])
            found["cost"].append([place, first, *_cost_of_base(base)])
        before = row["length"]
        side = row["pruned"]
        found["speed"].append([place, row["side"], _word(side), _gain(row, "prefill"), _gain(row, "total")])
        found["time"].append([place, row["side"], *_times(side)])
        found["cost"].append([place, row["side"], *_cost(row)])
    return [
        ("speed", SPEED, found["speed"]),
        ("time, and tokens that were kept", TIME, found["time"]),
        ("what it saves", COST, found["cost"]),
    ]


def pruning_notes(record: Row, sweep: Row | None = None) -> list[str]:
    """What the tables must not be read without; `sweep` is the record of `twinrun.bench` behind them."""
    request = record["request"]
    found = [
        f"every side asks for the logits of the last token alone and writes {request['new_tokens']} tokens, end of "
        "text ignored; times are medians, factors medians of paired rounds with p10 to p90",
        "kept: prompt tokens in the cache of the last layer; mean keep, mean keep²: over the layers, what the linear "
        f"and the quadratic part of the operations fall to (the paper's: {PAPER_KEEP['mean_keep']}, "
        f"{PAPER_KEEP['mean_keep_squared']})",
        "allow: operations of the whole prompt's prefill over those of the pruned one, counted by torch, scorers "
        "included (all attended pairs, the masked half too); reached: measured factor of the prefill over that",
        "paper: Table 2 of arXiv 2504.04514 (Mistral-7B on a GPU, keep ratio 0.9), prefill and end to end",
    ]
    refused = [_refused(row) for row in record["rows"] if not _timed(row["pruned"])]
    return list(dict.fromkeys([*found, *(refused if sweep is None else notes(sweep))]))


def pruning_markdown(record: Row) -> str:
    """Return tables and notes as Markdown."""
    parts = [f"# {record['request']['model']}"]
    for title, heads, rows in pruning_tables(record):
        lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3), *rows]
        parts.append(
            f"**{title}**\n\n" + "\n".join("| " + " | ".join(map(_safe, line)) + " |" for line in lines)
        )
    parts.append("\n".join(f"- {_safe(note)}" for note in pruning_notes(record)))
    return "\n\n".join(parts) + "\n"


def _refused(row: Row) -> str:
    side = row["pruned"]
    return f"{row['side']} at {row['length']:,} tokens: {side['status']}: {side['reason']}"


def _timed(side: Row) -> bool:
    return bool(side["status"] == "timed")


def _word(side: Row) -> str:
    """The verdict; the status where there are no times."""
    return str((side["verdict"] or {}).get("verdict", NONE)) if _timed(side) else str(side["status"])


def _again(place: str, first: str, row: Row) -> list[list[str]]:
    """The A/A run of the whole prompt."""
    noise = row["noise"]
    if noise["prefill"] is None:
        return []
    factors = [
        _factor(*(noise[part][f"ratio_{k}"] for k in ("median", "p10", "p90")))
        for part in ("prefill", "total")
    ]
    return [[place, f"{first} again (A/A)", "noise", *factors]]


def _times(side: Row) -> list[str]:
    if not _timed(side):
        return [NONE] * 7
    kl = (side["verdict"] or {}).get("kl_mean")
    return [
        *[seconds(side[f"{part}_latency_seconds"]) for part in ("prefill", "decode", "total")],
        f"{side['tokens_kept']:,}",
        *[NONE if side[key] is None else f"{side[key]:.3f}" for key in PAPER_KEEP],
        NONE if kl is None else f"{kl:.2g}",
    ]


def _gain(row: Row, part: str) -> str:
    """A factor; none where the verdict is that this is another model, or nothing was compared."""
    if row["speedup"] is None or row["speedup"][part] is None:
        return NONE
    if (row["pruned"]["verdict"] or {}).get("verdict") == "different":
        return NONE
    text = _factor(row["speedup"][part], row["speedup_p10"][part], row["speedup_p90"][part])
    return text + (", within noise" if row["within_noise"][part] else "")


def _factor(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f}× ({low:.2f}–{high:.2f})"


def _cost_of_base(base: Row) -> list[str]:
    if not _timed(base):
        return [NONE] * 6
    flops = NONE if base["prefill_flops"] is None else f"{base['prefill_flops']:.3g}"
    return [flops, "1", NONE, size(_peak(base)), size(base["cache_bytes"]), NONE]


def _cost(row: Row) -> list[str]:
    paper = row["paper"]
    published = NONE if paper is None else f"{paper['prefill']:.2f}×, {paper['total']:.2f}×"
    if row["speedup"] is None:
        return [*[NONE] * 5, published]
    return [
        _saved(row["flops_reduction"]),
        NONE if row["flops_allow"] is None else f"{row['flops_allow']:.2f}×",
        NONE if row["share_of_flops"] is None else f"{100 * row['share_of_flops']:.0f} %",
        _saved(row["memory_reduction"]),
        _saved(row["kv_reduction"]),
        published,
    ]


def _saved(share: float | None) -> str:
    return NONE if share is None else f"{-100 * share:+.1f} %"


def _peak(side: Row) -> int | None:
    found: int | None = side["cuda_peak_bytes"]
    if found is None:
        found = side["tensor_peak_bytes"]
    return found


def _safe(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
