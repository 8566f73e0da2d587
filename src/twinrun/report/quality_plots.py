"""Scores of an evaluation: one point a side with its interval, one panel a mode, beside the whole prompt's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinrun.report.canvas import BLUE, INK, LIGHT_BLUE, MUTED, blank, png

TITLES = {"end": "question in the pruned prompt", "unseen": "question unseen by the pruning"}


def quality_bars(record: Mapping[str, Any]) -> bytes:
    """Draw the mean score of every side with its 95 % interval, tasks as small points, a panel a mode.

    Args:
        record: what `Quality.to_json` returns.

    Returns:
        A PNG.
    """
    modes, sides = record["request"]["modes"], [side["name"] for side in record["request"]["sides"]]
    figure, panels = blank((5 * len(modes), 1.2 + 0.5 * len(sides)), panels=len(modes))
    for number, (axes, mode) in enumerate(zip(panels, modes, strict=True)):
        means = {m["side"]: m for m in record["overall"] if m["mode"] == mode}
        for i, side in enumerate(sides):
            for cell in record["cells"]:
                if (cell["mode"], cell["side"]) == (mode, side) and cell["score"] is not None:
                    axes.plot([100 * cell["score"]], [i + 0.22], "o", markersize=3, color=LIGHT_BLUE)
            if side in means:
                mean = means[side]
                axes.plot([100 * mean["low"], 100 * mean["high"]], [i, i], color=INK, linewidth=1.4)
                axes.plot([100 * mean["score"]], [i], "o", markersize=6, color=BLUE)
        if sides[0] in means:
            axes.axvline(100 * means[sides[0]]["score"], color=MUTED, linewidth=1, linestyle="--")
        axes.set_title(TITLES[mode], loc="left", fontsize=9, color=INK)
        axes.set_xlabel("score, percent", color=INK)
        axes.set_xlim(-3, 103)
        axes.set_yticks(
            range(len(sides)), [s.replace("$", r"\$") for s in sides] if number == 0 else [""] * len(sides)
        )
        axes.set_ylim(len(sides) - 0.4, -0.6)
    return png(figure)
