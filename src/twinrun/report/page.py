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
    shown = {k: "data:image/png;base64," + base64.b64encode(v).decode() for k, v in (figures or {}).items()}
    return html.document(
        "page.html.j2",
        record=record,
        view=view,
        charts=charts,
        words=words,
        figures=shown,
        tips=view.tips(record),
    )
