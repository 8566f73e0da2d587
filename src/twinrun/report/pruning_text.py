"""A sweep over pruned prompts in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from twinrun.records.pruning_words import pruning_notes, pruning_tables
from twinrun.report.bench_text import sweep_table


def pruning_text(record: Mapping[str, Any], sweep: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what to print: both tables, then the notes.

    Args:
        record: what `PruningBench.to_json` returns. Text in it may hold anything; no markup in it is read.
        sweep: what its `sweep.to_json` returns.
    """
    for title, heads, rows in pruning_tables(record):
        yield sweep_table(title, heads, rows)
        yield Text()
    for note in pruning_notes(record, sweep):
        yield Text(f"· {note}", style="dim")
