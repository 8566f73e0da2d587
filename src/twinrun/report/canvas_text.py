"""A trace of two diffusion runs in a terminal: what is wrong, where they part, the steps around it, the skips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from twinrun.report import canvas_view
from twinrun.report.words import harmless, seconds, visible

STYLES = {"good": "green", "tie": "yellow", "bad": "red"}
AROUND = 4


def canvas_text(record: Mapping[str, Any]) -> RenderableType:
    """Summary of a record of `twinrun.canvas-trace/1` for `Console.print`; text in it is shown as text."""
    said = canvas_view.headline(record)
    parts: list[RenderableType] = [_sides(record)]
    sign = {"good": "=", "tie": "~", "bad": "≠"}[said["state"]]
    head = Text(f"\n{sign} {harmless(said['kind'])}  ", style=STYLES[said["state"]])
    head.append(harmless(said["sentence"]), style="bold")
    parts.append(head)
    if record["blame"] and record["divergence"]:
        parts.append(Text(f"the runs part  {harmless(record['divergence']['sentence'])}", style="dim"))
    others = [f for f in record["findings"] if f != record["blame"]]
    parts += [
        Text(f"also  {harmless(f['where'])}: {harmless(f['sentence'])}", style="red") for f in others[:5]
    ]
    parts += [Text(""), _steps(record)]
    for figure in canvas_view.histograms(record):
        means = [f", mean cosine {mean}" if mean else "" for mean in figure["means"]]
        kept, skipped = (
            f"{n} {word}{mean}"
            for n, word, mean in zip(figure["totals"], ("kept", "skipped"), means, strict=True)
        )
        parts.append(Text(f"{figure['side']}: {kept}; {skipped}", style="dim"))
    return Group(*parts)


def _sides(record: Mapping[str, Any]) -> Text:
    text = Text()
    text.append(harmless(str(record["model"])), style="bold")
    text.append(f"  {harmless(str(record['dtype']))}, prompt of {len(record['prompt']['ids'])} tokens")
    if not record["complete"]:
        text.append("\nThe recording is not complete: it was stopped before its end.", style="yellow")
    for name, side in record["sides"].items():
        text.append(f"\n{name:9}  ", style="dim")
        text.append(harmless(str(side["runner"])))
        skipped = side["skipped"]
        share = f", {100 * skipped['skipped_share']:.0f} % of tokens skipped" if skipped["steps"] else ""
        text.append(
            f"  {len(side['steps'])} forwards{share}, {seconds(side['seconds'])} recording", style="dim"
        )
    return text


def _steps(record: Mapping[str, Any]) -> Table:
    told = record["blame"] or record["divergence"]
    rows = canvas_view.step_rows(record)
    at = None if told is None else told["step"]
    first = 0 if at is None else max(0, at - AROUND)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in ("", "step", "reference commits", "candidate commits", "skipped"):
        table.add_column(name, justify="right" if name in ("step", "skipped") else "left")
    for row in rows[first : first + 2 * AROUND + 1]:
        ours, theirs = row["cells"]
        cells = ["→" if row["number"] == at else "", str(row["number"]), _commits(ours), _commits(theirs)]
        differs = ours is not None and theirs is not None and _commits(ours) != _commits(theirs)
        cells.append("–" if theirs is None else str(theirs["skipped"]))
        table.add_row(*map(Text, cells), style="red" if differs else "")
    return table


def _commits(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    shown = [f"{visible(harmless(piece))} at {position}" for position, piece in cell["commits"]]
    more = f" and {cell['more']} more" if cell["more"] else ""
    return (", ".join(shown) or "nothing") + more
