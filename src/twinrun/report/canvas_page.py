"""One self-contained HTML page from a trace of two diffusion runs: the canvas fills in, step by step, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinrun.report import canvas_view, html
from twinrun.report.trace_pack import digits

SCRIPTS = ("words.js", "canvas_data.js", "canvas_player.js", "canvas_main.js")
"""Parts of the page's script, in the order in which they may use one another."""


def render_canvas_trace(record: Mapping[str, Any]) -> str:
    """Render a record of `twinrun.canvas-trace/1` as HTML.

    Args:
        record: what `canvas_shown` returns. Text in it may hold anything; it is escaped, and characters that cannot be
            seen stand as their code points.

    Returns:
        A whole HTML document that holds all its data; its content security policy forbids all requests and all scripts
        but its own. Without scripts it shows the end of both canvases, the histograms and the table of all steps.

    Cost: about 20 bytes a step and position of a block.
    """
    script = '"use strict";\n(() => {\n' + "\n".join(map(html.source, SCRIPTS)) + "\n})();"
    style = "\n".join(html.source(name) for name in ("style.css", "trace.css", "canvas.css"))
    return (
        html.environment()
        .get_template("canvas.html.j2")
        .render(
            record=record,
            headline=canvas_view.headline(record),
            meaning=canvas_view.MEANING,
            numbers=canvas_view.numbers(record),
            histograms=canvas_view.histograms(record),
            rows=canvas_view.step_rows(record),
            canvases={name: canvas_view.cells(record, name) for name in record["sides"]},
            place=canvas_view.place_facts(record),
            packed=pack(record),
            script=script,
            script_digest=html.digest(script),
            style=style,
        )
    )


def pack(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the script reads: `strings` once; `sides` with `steps` as lists.

    A step is [block, step in it, full, seconds, first position, confidences, proposals, commits, writes, skipped,
    cosines, compared]; a commit or write is [position, string].
    """
    strings: dict[str, int] = {}

    def of(piece: str) -> int:
        return strings.setdefault(piece, len(strings))

    sides = []
    for name, side in record["sides"].items():
        steps = [_step(step, of) for step in side["steps"]]
        sides.append({"name": name, "start": side["start"], "length": len(side["canvas"]), "steps": steps})
    told = record["blame"] or record["divergence"]
    return {
        "sides": sides,
        "parts": None if told is None else told["step"],
        "strings": list(strings),
    }


def _step(step: Mapping[str, Any], of: Any) -> list[Any]:
    written = [[[p, of(piece)] for p, _token, piece in step[name]] for name in ("commits", "writes")]
    cosine, compared = step["cosine"], step["compared"]
    return [
        step["block"],
        step["block_step"],
        int(step["full"]),
        digits(step["seconds"], 3),
        step["begin"],
        [digits(p, 4) for p in step["confidence"]],
        [of(piece) for piece in step["proposals"]],
        *written,
        step["skipped"],
        None if cosine is None else [digits(value, 7) for value in cosine],
        compared,
    ]
