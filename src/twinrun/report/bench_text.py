"""A sweep in a terminal: speeds with their verdicts, costs with their ceilings, and the notes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from twinrun.records.bench_notes import notes
from twinrun.records.bench_words import tables
from twinrun.report.tables import verdict_text
from twinrun.report.words import KINDS


def bench_text(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what to print of a sweep.

    Args:
        record: what `Bench.to_json` returns. Text in it may hold anything; no markup in it is read.
    """
    for title, heads, rows in tables(record["rows"]):
        if rows:
            yield sweep_table(title, heads, rows)
            yield Text()
    for note in notes(record):
        yield Text(f"· {note}", style="dim")


def sweep_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is said once a group, with a blank line between groups."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for head in heads:
        shown = re.sub(r" (?=\(p10|MFU|reads|memory)|(?<=,) ", "\n", head)
        table.add_column(
            shown, justify="left" if head in ("runner", "side", "verdict") else "right", overflow="fold"
        )
    before = None
    for row in rows:
        if before is not None and row[0] != before:
            table.add_row()
        table.add_row(*[_cell(text) for text in ["" if row[0] == before else row[0], *row[1:]]])
        before = row[0]
    return table


def _cell(text: str) -> Text:
    if text in KINDS:
        return verdict_text(text)
    return Text(text.replace(", within", "\nwithin"), style="dim" if text in ("–", "noise") else "")
