"""Curves of a sweep over pruned prompts: how many times as fast, by length of the prompt, and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twinrun.report.canvas import LINES, MUTED, blank, length_axis, one_legend, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (("prefill", "prefill: times as fast as the whole prompt"), ("total", "end to end: times as fast"))


def pruning_curves(record: Mapping[str, Any]) -> bytes:
    """Draw both factors by prompt length, medians with bands from p10 to p90, and what the operations allow, dashed.

    Args:
        record: what `PruningBench.to_json` returns.

    Returns:
        A PNG. Sides that were not timed at a length have no point there; a verdict "different" is marked by a cross.
    """
    figure, panels = blank((10, 4.2), panels=2)
    names = list(dict.fromkeys(row["side"] for row in record["rows"]))
    lengths = sorted({row["length"] for row in record["rows"]})
    for axes, (part, title) in zip(panels, PANELS, strict=True):
        for i, name in enumerate(names):
            rows = sorted((r for r in record["rows"] if r["side"] == name), key=lambda r: r["length"])
            _curve(
                axes,
                name,
                [r for r in rows if r["speedup"] and r["speedup"][part]],
                part,
                LINES[i % len(LINES)],
            )
        axes.axhline(1, color=MUTED, linewidth=1)
        length_axis(axes, title, lengths)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    one_legend(figure, panels[0])
    return png(figure)


def _curve(axes: Axes, name: str, rows: list[Mapping[str, Any]], part: str, colour: str) -> None:
    if not rows:
        return
    x = [row["length"] for row in rows]
    words = [(row["pruned"]["verdict"] or {}).get("verdict", "") for row in rows]
    label = f"{name.replace('$', chr(92) + '$')}: {', '.join(dict.fromkeys(words))}"
    marker = "x" if "different" in words else "o"
    axes.plot(
        x,
        [row["speedup"][part] for row in rows],
        marker=marker,
        markersize=4,
        linewidth=1.4,
        color=colour,
        label=label,
    )
    low, high = ([row[f"speedup_{k}"][part] for row in rows] for k in ("p10", "p90"))
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    if part == "prefill" and all(row["flops_allow"] for row in rows):
        axes.plot(x, [row["flops_allow"] for row in rows], linestyle="--", linewidth=1, color=colour)
