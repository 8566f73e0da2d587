"""One self-contained HTML page from a demo record: nothing is fetched, everything is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from twinrun.report import charts, html, view, words


def render(record: Mapping[str, Any], figures: Mapping[str, bytes] | None = None) -> str:
    """Render the record that `twinrun demo` writes (demo.json) as HTML.

    Args:
        record: `model`, `twins` (precisions with their verdict records), `contrast` (texts, or `skipped`),
            `faults`, `passed`, `env`, `seconds`. Text in it may hold anything; it is escaped.
        figures: caption -> PNG, embedded below the tables.

    Returns:
        A whole HTML document; its content security policy forbids all requests and all scripts but its own.
    """
    script = html.source("script.js")
    shown = {k: "data:image/png;base64," + base64.b64encode(v).decode() for k, v in (figures or {}).items()}
    return (
        html.environment()
        .get_template("page.html.j2")
        .render(
            record=record,
            view=view,
            charts=charts,
            words=words,
            figures=shown,
            script=script,
            script_digest=html.digest(script),
            style=html.source("style.css"),
            tips=view.tips(record),
        )
    )
