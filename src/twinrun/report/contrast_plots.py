"""PNG of contrast samples: the histogram of KL, and answers whose tokens are shaded by it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from twinrun.report.canvas import HEAT, INK, MUTED, png, stacked
from twinrun.report.contrast_view import share
from twinrun.report.plots import draw_kl_histogram
from twinrun.report.view import heat
from twinrun.report.words import harmless, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 118
"""Characters a line."""
MOST_LINES = 150
"""Answers that would not fit are left out, and the picture says how many."""
_SIZE_PT, _CHAR_INCHES, _LINE_INCHES, _HEAD_INCHES = 7.5, 7.5 * 0.602 / 72, 0.165, 2.5


@dataclass(frozen=True, slots=True)
class _Cell:
    """A piece of a token on one line: where it stands, what it says, how it is shaded."""

    line: int
    column: int
    width: int
    text: str
    shade: float
    chosen: bool


def contrast_png(record: Mapping[str, Any]) -> bytes:
    """Draw a record of `twinrun.contrast-shown/1`: histogram of the whole folder, then the first answers.

    Args:
        record: what `twinrun.contrast.shown.shown` returns; text in it may hold anything. A character without a
            glyph in the plain font of matplotlib stands as a box.

    Returns:
        A PNG, 8 inches wide; its height follows the answers, at most 150 lines of them.
    """
    answers, lines = _fitting(record["texts"])
    left = len(record["texts"]) - len(answers)
    body = _LINE_INCHES * (lines + 2)
    width, height = _CHAR_INCHES * COLUMNS + 0.8, _HEAD_INCHES + body
    figure, (above, below) = stacked(
        (width, height),
        [
            (0.7 / width, (body + 0.5) / height, 1 - 1.1 / width, (_HEAD_INCHES - 0.85) / height),
            (0.4 / width, 0.0, _CHAR_INCHES * COLUMNS / width, body / height),
        ],
    )
    draw_kl_histogram(above, record["kl"], float(record["settings"].get("beta", 0.4)))
    above.set_title(
        f"{record['counts']['kept']:,} of {record['counts']['steps']:,} steps kept ({share(record['counts'])})",
        loc="left", fontsize=9, color=INK,
    )  # fmt: skip
    _draw(below, answers, lines, left)
    return png(figure)


def _fitting(texts: Iterable[Mapping[str, Any]]) -> tuple[list[tuple[int, str, list[_Cell]]], int]:
    """As many answers as fit: line of the heading, heading, cells; and the lines used. The first always stands."""
    found: list[tuple[int, str, list[_Cell]]] = []
    line = 0
    for text in texts:
        cells = list(_cells(text, line + 1))
        end = max((cell.line for cell in cells), default=line) + 2
        if found and end > MOST_LINES:
            break
        kept = f"  {len(text['chosen'])} of {len(text['tokens'])} steps kept{'' if text['finished'] else ', cut off'}"
        name = harmless(text["prompt_id"])
        cut = COLUMNS - len(kept) - 1
        found.append((line, (name if len(name) <= cut else name[: cut - 1] + "…") + kept, cells))
        line = end
    return found, line


def _cells(text: Mapping[str, Any], line: int) -> Iterator[_Cell]:
    """Cut tokens into pieces that fit the lines; a line break in a token ends its line."""
    column, chosen = 0, set(text["chosen"])
    for i, (token, kl) in enumerate(zip(text["tokens"], text["kl"], strict=True)):
        shade, start, piece = heat(kl), column, ""
        for mark in _characters(token):
            if column == COLUMNS:
                if piece:
                    yield _Cell(line, start, column - start, piece, shade, i in chosen)
                line, column, start, piece = line + 1, 0, 0, ""
            column, piece = column + 1, piece + mark
            if mark == "↵":
                yield _Cell(line, start, column - start, piece, shade, i in chosen)
                line, column, start, piece = line + 1, 0, 0, ""
        if piece:
            yield _Cell(line, start, column - start, piece, shade, i in chosen)


def _characters(token: str) -> Iterator[str]:
    """Characters with what they carry (accents); each without a glyph as a box, which is one column wide."""
    mark = ""
    for character in visible(harmless(token)).replace("␣", " "):
        if mark and not unicodedata.combining(character):
            yield mark
            mark = ""
        mark += character if _has_glyph(character) else "□"
    if mark:
        yield mark


@cache
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    return bool(get_font(findfont("DejaVu Sans Mono")).get_char_index(ord(character)))


def _draw(axes: Axes, answers: list[tuple[int, str, list[_Cell]]], lines: int, left: int) -> None:
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(lines + 2, 0)
    font: dict[str, Any] = {
        "size": _SIZE_PT,
        "family": "DejaVu Sans Mono",
        "va": "center",
        "parse_math": False,
    }
    for at, heading, cells in answers:
        axes.text(0, at + 0.5, heading, color=MUTED, **font)
        for cell in cells:
            corner = (cell.column, cell.line + 0.08)
            axes.add_patch(
                Rectangle(corner, cell.width, 0.84, color=HEAT, alpha=0.62 * cell.shade, linewidth=0)
            )
            if cell.chosen:
                base = cell.line + 0.93
                axes.plot([cell.column, cell.column + cell.width], [base, base], color=HEAT, linewidth=1.2)
            if cell.text.strip():
                axes.text(cell.column, cell.line + 0.5, cell.text, color=INK, **font)
    if left:
        axes.text(0, lines + 0.7, f"{left} more on the page", color=MUTED, **font)
