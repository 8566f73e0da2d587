"""One self-contained HTML page from the samples of an expert against an amateur."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinrun.report import charts, contrast_view, html, view, words


def render_contrast(record: Mapping[str, Any]) -> str:
    """Render a record of `twinrun.contrast-shown/1` as HTML.

    Args:
        record: what `twinrun.contrast.shown.shown` returns. Text in it may hold anything; it is escaped, and characters
            that cannot be seen, or that turn others around, stand as their code points.

    Returns:
        A whole HTML document that holds all its data; its content security policy forbids all requests and all scripts
        but its own. Without scripts it shows all but the alternatives at a token.

    Cost: about 1 kB a token with alternatives of both models, 150 bytes without.
    """
    beta = float(record["settings"].get("beta", words.BETA))
    return html.document(
        "contrast.html.j2",
        record=record,
        view=view,
        beta=beta,
        bars=charts.histogram(record["kl"], beta),
        tiles=contrast_view.tiles(record),
        share=contrast_view.share(record["counts"]),
        lead=contrast_view.lead(record),
        texts=contrast_view.texts(record),
        facts=contrast_view.facts(record),
        tips=contrast_view.tips(record),
    )
