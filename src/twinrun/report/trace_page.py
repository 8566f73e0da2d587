"""One self-contained HTML page from a trace: nothing is fetched, everything is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinrun.report import html, trace_pairs, trace_view
from twinrun.report.trace_pack import pack

SCRIPTS = (
    "words.js",
    "trace_data.js",
    "trace_map.js",
    "trace_strip.js",
    "trace_panels.js",
    "trace_curves.js",
    "trace_tables.js",
    "trace_main.js",
)
"""Parts of the page's script, in the order in which they may use one another."""


def render_trace(record: Mapping[str, Any]) -> str:
    """Render a trace record (`twinrun.trace/1`) as HTML.

    Args:
        record: plain JSON types; unknown is null. Text in it may hold anything; it is escaped, and characters
            that cannot be seen stand as their code points.

    Returns:
        A whole HTML document that holds all its data; its content security policy forbids all requests and
        all scripts but its own.

    Cost: about 450 bytes a step of both sides, and 15 bytes a layer of each recorded curve.
    """
    script = script_text()
    curves = record["curves"]
    return (
        html.environment()
        .get_template("trace.html.j2")
        .render(
            record=record,
            headline=trace_view.headline(record),
            numbers=trace_view.numbers(record),
            blame_rows=trace_view.blame_rows(record),
            place=trace_view.place_facts(record),
            shapes={name: trace_view.shape(record["sides"][name]) for name in trace_pairs.SIDES},
            has_curves=bool(curves and curves["positions"]),
            count=len(trace_pairs.units(record)),
            packed=pack(record),
            script=script,
            script_digest=html.digest(script),
            style=html.source("style.css") + "\n" + html.source("trace.css"),
        )
    )


def script_text() -> str:
    """The page's whole script, in one scope of its own."""
    return '"use strict";\n(() => {\n' + "\n".join(map(html.source, SCRIPTS)) + "\n})();"
