"""A canvas that fills in while it is decoded, on a terminal's stderr; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from twinrun.models.model import Model
from twinrun.records.diffusion_run import DiffusionObserver, DiffusionStep
from twinrun.report.words import harmless
from twinrun.runners.score import token_texts

OPEN = "░"
"""What stands where nothing is decided yet."""
MOST_ROWS = 4
"""Rows of a batch that are shown."""


class CanvasText:
    """The generation areas of a batch as text, brought up to date by every step."""

    def __init__(self, model: Model, starts: Sequence[int], room: int) -> None:
        """Begin with `room` open positions a row; `starts` are the lengths of the prompts."""
        self._model, self._starts = model, list(starts[:MOST_ROWS])
        self._rows: list[list[str | None]] = [[None] * room for _ in self._starts]
        self._new: list[set[int]] = [set() for _ in self._starts]
        self._nfe = 0

    def add(self, step: DiffusionStep) -> None:
        """Write what a step committed."""
        self._nfe = step.index + 1
        for row, start in enumerate(self._starts):
            places = [p - start for p in step.positions[row]]
            ids = step.tokens[row]
            texts = token_texts(self._model, ids) or [f"{i} " for i in ids]
            for place, text in zip(places, texts, strict=True):
                self._rows[row][place] = harmless(text)
            self._new[row] = set(places)

    def text(self) -> Text:
        """The rows one below another: new tokens green, open positions grey."""
        shown = Text(f"forward {self._nfe}\n", style="dim")
        for row, new in zip(self._rows, self._new, strict=True):
            for place, token in enumerate(row):
                style = "dim" if token is None else "bold green" if place in new else "not dim"
                shown.append(OPEN if token is None else token, style=style)
            shown.append("\n")
        return shown


@contextmanager
def live_canvas(
    model: Model, prompts: Sequence[Sequence[int]], room: int
) -> Iterator[DiffusionObserver | None]:
    """Show a canvas filling in for as long as the block lasts; yields the observer, None where none is wanted."""
    screen = Console(stderr=True)
    if not screen.is_terminal or room < 1:
        yield None
        return
    canvas = CanvasText(model, [len(p) for p in prompts], room)
    with Live(canvas.text(), console=screen, transient=True, refresh_per_second=12) as live:

        def observe(step: DiffusionStep) -> None:
            canvas.add(step)
            live.update(canvas.text())

        yield observe
