"""Geometry of the charts on the page: bins, heights and places in percent. No HTML here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from twinrun.report.words import BETA, short

STRIP_COLUMNS = 400
"""Longer rows are cut: their first columns hold where the sides part."""


def log_bins(
    values: Sequence[float], low: float = -3.0, per_decade: int = 5, beta: float = BETA
) -> tuple[list[int], list[float]]:
    """Count in log bins from 10^low nats up; smaller values fall into the first, larger in the last.

    Bin edges include the threshold (they are `beta` times a power of ten's fifth root; of 0.4 nats if it is 0).

    Returns:
        Counts, and one edge more than counts.
    """
    anchor = math.log10(beta or BETA)
    first = math.floor((low - anchor) * per_decade)
    last = math.ceil((math.log10(max([*values, 1.0, beta])) - anchor) * per_decade + 1e-9)
    edges = [10 ** (anchor + i / per_decade) for i in range(first, last + 1)]
    counts = [0] * (len(edges) - 1)
    for value in values:
        at = math.floor((math.log10(max(value, 1e-300)) - anchor) * per_decade) - first
        counts[min(max(at, 0), len(counts) - 1)] += 1
    return counts, edges


def histogram(values: Sequence[float], beta: float = BETA) -> dict[str, Any]:
    """Bars of per-token KL on logarithmic bins; heights follow the square root of the count."""
    counts, edges = log_bins(values, beta=beta)
    top = max([*counts, 1])
    first, last = math.log10(edges[0]), math.log10(edges[-1])
    bars = [
        {
            "height": round(100 * math.sqrt(count / top), 2),
            "count": count,
            "above": low >= beta * 0.999,
            "range": f"{short(low)} to {short(high)}",
            "title": f"{short(low)} to {short(high)} nats: {count} tokens",
        }
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
    ]
    marks = [10.0**k for k in range(math.ceil(first), math.floor(last) + 1)]
    ticks = [
        {"at": round(100 * (math.log10(m) - first) / (last - first), 2), "text": f"{m:g}"} for m in marks
    ]
    return {
        "bars": bars,
        "ticks": ticks,
        "beta_at": round(100 * max(0.0, (math.log10(beta or edges[0]) - first) / (last - first)), 2),
        "above": sum(v > beta for v in values),
        "total": len(values),
    }


def strip(trace: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns of a fault's gap at each position, log scale, and the line below which rounding explains it.

    Args:
        trace: `positions`, `gap_up` (nats, one precision up) and `allowed` (nats).
    """
    gaps, allowed = list(trace["gap_up"])[:STRIP_COLUMNS], trace["allowed"]
    if allowed is None or not gaps:
        return None
    low = math.log10(allowed) - 2.5
    top = max(math.log10(max(g for g in gaps)) if max(gaps) > 0 else low, math.log10(allowed)) + 0.3

    def height(value: float) -> float:
        return round(100 * min(max((math.log10(max(value, 1e-300)) - low) / (top - low), 0.015), 1.0), 2)

    odd = [gap > allowed for gap in gaps]
    return {
        "columns": [{"height": height(g), "odd": o} for g, o in zip(gaps, odd, strict=True)],
        "fine": len(gaps) > 90,
        "line_at": height(allowed),
        "allowed": short(allowed),
        "first": trace["positions"][0],
        "last": trace["positions"][len(gaps) - 1],
        "parts_at": trace["positions"][odd.index(True)] if any(odd) else None,
        "parts_left": round(100 * odd.index(True) / len(gaps), 2) if any(odd) else None,
        "odd": sum(odd),
        "top": short(max(gaps)),
    }
