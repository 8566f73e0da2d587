"""The plain light figure that all plots are drawn on, and its PNG. matplotlib is imported at the first plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, BLUE, LIGHT_BLUE, HEAT = "#1b1f24", "#8a929c", "#c0262d", "#3451b2", "#9fb0ea", "#e8590c"
Place = tuple[float, float, float, float]
LINES = (BLUE, HEAT, "#0a7a4b", MUTED, INK)
"""Colours of curves, in order."""


def blank(inches: tuple[float, float], panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, without frames that say nothing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=150, layout="constrained")
    return figure, _plain([figure.add_subplot(1, panels, i + 1) for i in range(panels)])


def stacked(inches: tuple[float, float], places: Sequence[Place]) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels at given places: (left, bottom, width, height) in shares of the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=150)
    return figure, _plain([figure.add_axes(place) for place in places])


def _plain(panels: list[Axes]) -> list[Axes]:
    for axes in panels:
        axes.tick_params(colors=INK, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return panels


def length_axis(axes: Axes, title: str, lengths: Sequence[int]) -> None:
    """Prompt lengths from left to right, doubling in equal steps, each named; a title and lines to read values by."""
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel("prompt, tokens", color=INK)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(lengths) == 1:
        axes.set_xlim(lengths[0] / 2, lengths[0] * 2)


def one_legend(figure: Figure, axes: Axes) -> None:
    """The names of the curves of one panel under all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(3, len(handles)), frameon=False, fontsize=8
        )


def png(figure: Figure) -> bytes:
    """Return the figure as PNG on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white")
    return out.getvalue()
