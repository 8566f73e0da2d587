"""PNG plots of verdict records and of KL along texts. matplotlib is imported at the first plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from twinrun.report.canvas import BLUE, HEAT, INK, LIGHT_BLUE, LINES, MUTED, RULE, blank, png
from twinrun.report.charts import log_bins
from twinrun.report.words import BETA, limits, speed_of, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES = 0.42


def error_ratios(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Bars of the error ratio of each verdict record, worst and root mean square, with the two rule lines."""
    shown = [row for row in rows if row.get("ratio_max") is not None]
    figure, axes = _figure(len(shown) * 1.3, "candidate's error / reference's own error")
    for i, row in enumerate(shown):
        axes.barh(i - 0.19, row["ratio_max"], 0.34, color=BLUE, label="worst token" if i == 0 else None)
        axes.barh(
            i + 0.19, row["ratio_rms"], 0.34, color=LIGHT_BLUE, label="root mean square" if i == 0 else None
        )
        for limit, at in zip(limits(row), (i - 0.19, i + 0.19), strict=True):
            axes.vlines(limit, at - 0.2, at + 0.2, color=RULE, label="allowed" if at < 0 else "")
    if any(row["ratio_max"] > 10 for row in shown):
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.15 * max((limits(row)[0] for row in shown), default=2.0))
    _name_rows(axes, [f"{row['candidate']}\n{row['dtype']}" for row in shown])
    if shown:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 if len(shown) < 4 else -0.16), ncols=4)
    return png(figure)


def speed_ups(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Bars of the speed-up against the reference with p10 to p90; records whose verdict failed have none."""
    timed = [
        (row, speed) for row in rows if (speed := speed_of(row)) is not None and row["verdict"] != "reference"
    ]
    figure, axes = _figure(len(timed), "times as fast as one forward a token (log)")
    for i, (_, speed) in enumerate(timed):
        median, low, high = (speed[f"speed_up_{key}"] for key in ("median", "p10", "p90"))
        axes.barh(i, median, 0.55, color=BLUE)
        axes.plot([low, high], [i, i], color=INK, linewidth=1.2)
        axes.annotate(
            spread(median, low, high), (max(high, median), i), (6, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    if timed:
        axes.set_xlim(0.5, 6 * max(speed["speed_up_p90"] for _, speed in timed))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.axvline(1, color=MUTED, linewidth=1)
    _name_rows(axes, [f"{row['candidate']}\n{row['dtype']}, {row['verdict']}" for row, _ in timed])
    return png(figure)


def kl_histogram(values: Sequence[float], beta: float = BETA) -> bytes:
    """Histogram of per-token KL in nats, logarithmic bins, with the line that chooses steps."""
    figure, axes = _figure(6, "")
    draw_kl_histogram(axes, values, beta)
    return png(figure)


def draw_kl_histogram(axes: Axes, values: Sequence[float], beta: float = BETA) -> None:
    """Draw the histogram of per-token KL on axes that exist."""
    counts, edges = log_bins(values, beta=beta)
    colours = [HEAT if low >= beta * 0.999 else LIGHT_BLUE for low in edges[:-1]]
    axes.bar(
        edges[:-1],
        counts,
        [b - a for a, b in pairwise(edges)],
        align="edge",
        color=colours,
    )
    if beta > 0:
        axes.axvline(beta, color=INK, linewidth=1)
    share = sum(v > beta for v in values) / max(1, len(values))
    axes.set_title(
        f"{share:.0%} of {len(values)} tokens lie above {beta:g} nats", loc="left", fontsize=9, color=INK
    )
    axes.set_xlabel("KL(expert || amateur) at a token, nats", color=INK)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 1.6 * max([*counts, 1]))  # the tallest bar ends inside the frame
    axes.set_ylabel("tokens")


def kl_strips(texts: Sequence[tuple[str, Sequence[float | None]]], beta: float = BETA) -> bytes:
    """One heat strip a text: the KL at each token, darker is larger, with a tick below each chosen one.

    Args:
        texts: (label, KL at each token, None where there is none).
        beta: threshold of the ticks, nats.
    """
    figure, axes = _figure(len(texts) * 1.1, "token of the answer")
    for i, (_, kl) in enumerate(texts):
        shades = [min(1.0, math.sqrt((v or 0.0) / 2)) for v in kl]
        for at, (shade, value) in enumerate(zip(shades, kl, strict=True)):
            axes.barh(i, 1, 0.6, left=at, color=HEAT, alpha=shade, linewidth=0)
            if value is not None and value > beta:
                axes.plot([at + 0.5], [i + 0.42], marker="^", markersize=3, color=INK)
        axes.barh(i, len(kl), 0.6, color="none", edgecolor="#d5d8dc", linewidth=0.8)
    axes.set_xlim(0, max((len(kl) for _, kl in texts), default=1))
    _name_rows(axes, [label for label, _ in texts])
    return png(figure)


def speed_by_length(lengths: Sequence[int], seconds: Mapping[str, Sequence[float]]) -> bytes:
    """Seconds of each runner along the length of the text, both axes logarithmic."""
    figure, axes = _figure(7, "tokens")
    for i, (name, values) in enumerate(seconds.items()):
        axes.plot(
            lengths,
            values,
            marker="o",
            markersize=3.5,
            color=LINES[i % len(LINES)],
            label=name,
        )
    axes.set(xscale="log", yscale="log", ylabel="seconds")
    axes.set_xticks(list(lengths), [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.legend()
    return png(figure)


def _figure(rows: float, xlabel: str) -> tuple[Figure, Axes]:
    """An axes as high as its rows need, without a frame that says nothing."""
    figure, (axes,) = blank((8, 1.1 + ROW_INCHES * max(1.0, rows)))
    axes.set_xlabel(xlabel, color=INK)
    return figure, axes


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
