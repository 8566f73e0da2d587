"""How far tokens had moved when they were kept or skipped: 1 - cosine, counted in half decades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from twinrun.trace.canvas_step import CanvasStep

FLOOR = -7.0
"""Decades of 1 - cosine below which float32 knows nothing; the first bin holds all that is smaller, and zero."""
HALVES = 14


def cosine_distribution(steps: Sequence[CanvasStep]) -> dict[str, Any] | None:
    """Count the tokens of all steps by 1 - mean cosine, kept and skipped ones apart.

    Returns:
        `edges` (bounds of 1 - cosine, ascending), `kept` and `skipped` (counts, one fewer), and the mean cosine of
        each kind (`mean_kept`, `mean_skipped`, None where there is none). None if no step has cosines.

    Example:
        >>> cosine_distribution([]) is None
        True
    """
    kept: list[float] = []
    skipped: list[float] = []
    for step in steps:
        if step.skips is None or step.skips.mean is None:
            continue
        for value, active in zip(step.skips.mean, step.skips.active, strict=True):
            if value is not None:
                (kept if active else skipped).append(value)
    if not kept and not skipped:
        return None
    return {
        "edges": [0.0, *(10 ** (FLOOR + i / 2) for i in range(1, HALVES)), 2.0],
        "kept": _counted(kept),
        "skipped": _counted(skipped),
        "mean_kept": sum(kept) / len(kept) if kept else None,
        "mean_skipped": sum(skipped) / len(skipped) if skipped else None,
    }


def _counted(cosines: Sequence[float]) -> list[int]:
    found = [0] * HALVES
    for value in cosines:
        moved = 1 - value
        place = 0 if moved <= 0 else math.floor(2 * (math.log10(moved) - FLOOR))
        found[min(HALVES - 1, max(0, place))] += 1
    return found
