"""A trace in a terminal: who ran, where the sides part and why, and the steps around that place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from twinrun.report import trace_pairs, trace_view
from twinrun.report.prune_text import prune_text
from twinrun.report.trace_pairs import DIFFER, SAME, SIDES, Unit
from twinrun.report.words import harmless, seconds, short, times, visible

STYLES = {"good": "green", "tie": "yellow", "bad": "red"}
SIGNS = ("=", "≠", "◐", "·")


def trace_text(record: Mapping[str, Any]) -> RenderableType:
    """Summary of a trace record for `Console.print`.

    Args:
        record: `twinrun.trace/1`, plain JSON types, unknown is null. Text in it is shown as text: no markup, and
            characters that cannot be seen, escape sequences among them, stand as their code points.

    Returns:
        The sides, the first divergence, the blame, what a pruned prefill did, the steps from five before to five after
            the divergence, and the error of every layer there.
    """
    parts: list[RenderableType] = [_sides(record), _headline(record)]
    for name in SIDES:
        if record["sides"][name].get("prune"):
            parts += [Text(""), prune_text(record["sides"][name]["prune"], name)]
    paired = trace_pairs.units(record)
    centre = trace_pairs.divergence_unit(record, paired)
    if paired:
        parts += [Text(""), _steps(record, paired, centre)]
    position = None if centre is None else paired[centre].position
    layers = trace_view.layer_rows(record, position)
    if layers:
        parts += [Text(""), _layers(layers)]
    return Group(*parts)


def _sides(record: Mapping[str, Any]) -> Text:
    mode = "running free" if record["mode"] == "free" else "teacher-forced"
    text = Text()
    text.append(harmless(str(record["model"])), style="bold")
    text.append(
        f"  {harmless(str(record['dtype']))}, {mode}, prompt of {len(record['prompt']['ids'])} tokens"
    )
    if not record["complete"]:
        text.append("\nThe recording is not complete: it was stopped before its end.", style="yellow")
    for name in SIDES:
        side = record["sides"][name]
        text.append(f"\n{name:9}  ", style="dim")
        text.append(harmless(str(side["runner"])))
        finish = f", finish: {harmless(side['finish'])}" if side["finish"] else ""
        text.append(f"  {trace_view.shape(side)}, {seconds(side['seconds'])} recording{finish}", style="dim")
    return text


def _headline(record: Mapping[str, Any]) -> Text:
    said, told, blame = trace_view.headline(record), record["divergence"], record["blame"]
    text = Text("\n")
    sign = {"good": "=", "tie": "~", "bad": "≠"}[said["state"]]
    text.append(f"{sign} {harmless(said['kind'])}", style=STYLES[said["state"]])
    text.append(f"  {harmless(said['sentence'])}", style="bold")
    known = [f"{key} {short(told[key])}" for key in ("margin", "noise") if told and told[key] is not None]
    if told and told["ratio"] is not None:
        known.append(f"ratio {times(told['ratio'])}")
    if known:
        text.append(f"\n  {', '.join(known)}")
    if blame:
        text.append("\nblame  ", style="dim")
        text.append(harmless(blame["sentence"]))
        values = (f"{key} {short(blame[at])}" for key, at in (("in", "error_in"), ("out", "error_out")))
        text.append(f"  ({', '.join(values)}, rounding explains {short(blame['noise'])})", style="dim")
    if record["verdict"]:
        text.append("\nverdict  ", style="dim")
        text.append(harmless(f"{record['verdict']['verdict']}: {record['verdict']['reason']}"))
    return text


def _table(*columns: tuple[str, bool]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table


def _steps(record: Mapping[str, Any], paired: list[Unit], centre: int | None) -> Table:
    table = _table(
        ("", False), ("step", True), ("position", True), ("reference", False), ("p", True), ("candidate", False),
        ("p", True), ("", False),
    )  # fmt: skip
    for at in trace_view.around(len(paired), centre):
        unit = paired[at]
        cells = [
            Text("→" if at == centre else " "),
            Text(_step_words(record, unit)),
            Text(str(unit.position)),
        ]
        for side, place in zip(SIDES, (unit.reference, unit.candidate), strict=True):
            row = trace_pairs.row_at(record, side, place)
            cells += [Text(_token(row, record["mode"])), Text(_probability(row, record["mode"]))]
        cells.append(Text(f"{SIGNS[unit.state]} {trace_pairs.STATE_WORDS[unit.state]}"))
        style = {SAME: "", DIFFER: "red"}.get(unit.state, "yellow")
        table.add_row(*cells, style=f"bold {style}".strip() if at == centre else style)
    return table


def _step_words(record: Mapping[str, Any], unit: Unit) -> str:
    places = zip(SIDES, (unit.reference, unit.candidate), strict=True)
    numbers = [str(record["sides"][s]["steps"][p.step]["step"]) if p is not None else "–" for s, p in places]
    return numbers[0] if numbers[0] == numbers[1] else "/".join(numbers)


def _token(row: Mapping[str, Any] | None, mode: str, width: int = 18) -> str:
    if row is None:
        return "–"
    token = trace_pairs.said(row, mode)
    piece = next((top[1] for top in row["top"] or () if top[0] == token), row["piece"])
    if piece is None:
        return "–" if token is None else f"#{token}"
    text = visible(harmless(piece))
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _probability(row: Mapping[str, Any] | None, mode: str) -> str:
    if row is None:
        return "–"
    token = trace_pairs.said(row, mode)
    found = next((top[2] for top in row["top"] or () if top[0] == token), None)
    if found is None and row["logprob"] is not None and token == row["token"]:
        found = math.exp(row["logprob"])
    return "–" if found is None else f"{100 * found:.1f} %"


def _layers(rows: list[dict[str, Any]]) -> Group:
    table = _table(
        ("layer", False),
        ("relative error", True),
        ("rounding explains", True),
        ("1 − cosine", True),
        ("", False),
    )
    for row in rows:
        layer = harmless(str(row["layer"]))
        shown = [
            layer if len(layer) <= 20 else f"{layer[:19]}…",
            short(row["error"]),
            short(row["noise"]),
            short(row["angle"]),
        ]
        beyond = "▲ beyond rounding" if row["over"] else ""
        table.add_row(*map(Text, [*shown, beyond]), style="red" if row["over"] else "")
    return Group(Text(f"layers at position {rows[0]['position']}", style="dim"), table)
