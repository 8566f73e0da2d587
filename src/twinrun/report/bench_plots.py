"""Curves of a sweep: time of the prompt and of a token along the length of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twinrun.records.bench_words import NONE, verdict_word
from twinrun.report.canvas import LINES, blank, length_axis, one_legend, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("prefill", ("seconds_p10", "seconds_median", "seconds_p90"), "prefill: time to the first token"),
    ("decode", ("token_seconds_p10", "token_seconds_p50", "token_seconds_p90"), "decode: time a token"),
)
MARKS = {"identical": "o", "equivalent": "o", "reference": "s", "lossy": "^", "different": "x"}


def bench_curves(record: Mapping[str, Any]) -> bytes:
    """Draw prefill and decode times by prompt length, medians with bands from p10 to p90; the verdict is in the legend.

    Args:
        record: what `Bench.to_json` returns.

    Returns:
        A PNG. Runners that were not timed at a length have no point there.
    """
    figure, panels = blank((10, 4.2), panels=2)
    lengths = sorted(row["length"] for row in record["rows"])
    names = [runner["name"] for runner in record["request"]["runners"]]
    for axes, (part, keys, title) in zip(panels, PANELS, strict=True):
        for i, name in enumerate(names):
            _curve(axes, record, name, part, keys, LINES[i % len(LINES)])
        axes.set_yscale("log")
        length_axis(axes, title, lengths)
        axes.yaxis.set_major_formatter(lambda value, _: _time(value))
        _decimal_ticks(axes)
    one_legend(figure, panels[0])
    return png(figure)


def _curve(
    axes: Axes, record: Mapping[str, Any], name: str, part: str, keys: tuple[str, str, str], colour: str
) -> None:
    points = [
        (row["length"], *(cell[part][key] for key in keys), verdict_word(cell))
        for row in sorted(record["rows"], key=lambda r: r["length"])
        for cell in row["cells"]
        if cell["runner"] == name and cell["status"] == "timed" and cell[part] is not None
    ]
    if not points:
        return
    x, low, middle, high, words = (list(column) for column in zip(*points, strict=True))
    label = f"{name.replace('$', chr(92) + '$')}: {', '.join(dict.fromkeys(words)) or NONE}"
    marker = "x" if "different" in words else MARKS.get(words[0], "o")
    axes.plot(x, middle, marker=marker, markersize=4, linewidth=1.4, color=colour, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    if len(points) == 1:  # a band of one length has no width
        axes.vlines(x, low, high, color=colour, linewidth=1.2)


def _decimal_ticks(axes: Axes) -> None:
    """Label 1, 2 and 5 of every decade, so that a range of less than one has labels too."""
    from matplotlib.ticker import LogLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))


def _time(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale * 0.9999:
            return f"{value / scale:g} {unit}"
    return f"{value:g} s"
