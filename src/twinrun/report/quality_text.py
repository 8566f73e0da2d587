"""An evaluation in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from twinrun.records.quality import quality_notes, quality_tables
from twinrun.report.bench_text import sweep_table


def quality_text(record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what to print: scores and pairs of each mode, then the notes.

    Args:
        record: what `Quality.to_json` returns. Text in it may hold anything; no markup in it is read.
    """
    for title, heads, rows in quality_tables(dict(record)):
        yield sweep_table(title, heads, rows)
        yield Text()
    for note in quality_notes(dict(record)):
        yield Text(f"· {note}", style="dim")
