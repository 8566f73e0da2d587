"""What a pruned prefill did, stage by stage, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from twinrun.report.words import harmless, short

COLUMNS = ("layer", "tokens in", "kept", "of the prompt", "score min", "mean", "max", "distinct")


def prune_text(log: Mapping[str, Any], who: str) -> RenderableType:
    """Table of one prefill's log (`Prefill.to_json`): length in, kept, and how the scores lay; first row of a batch.

    Args:
        log: the log.
        who: which side it is of.
    """
    length = log["prompt_tokens"][0]
    title = Text(
        f"{who}: prefill of {length} tokens, pruned by {harmless(str(log['selector']))}", style="dim"
    )
    if not log["stages"]:
        return Text.assemble(title, ("; too short to prune, nothing was dropped", "dim"))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for stage in log["stages"]:
        scores, kept = stage["scores"], stage["kept"][0]
        numbers = [short(scores[key]) if key in scores else "–" for key in ("min", "mean", "max")]
        table.add_row(
            str(stage["layer"]),
            str(stage["tokens_in"][0]),
            str(kept),
            f"{100 * kept / length:.1f} %",
            *numbers,
            str(scores.get("distinct", "–")),
        )
    return Group(title, table)
