"""One self-contained HTML page from a demo record: nothing is fetched, everything is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from twinrun.report import charts, view, words


def render(record: Mapping[str, Any], figures: Mapping[str, bytes] | None = None) -> str:
    """Render the record that `twinrun demo` writes (demo.json) as HTML.

    Args:
        record: `model`, `twins` (precisions with their verdict records), `contrast` (texts, or `skipped`),
            `faults`, `passed`, `env`, `seconds`. Text in it may hold anything; it is escaped.
        figures: caption -> PNG, embedded below the tables.

    Returns:
        A whole HTML document; its content security policy forbids all requests and all scripts but its own.
    """
    env = _environment()
    script = _source("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {k: "data:image/png;base64," + base64.b64encode(v).decode() for k, v in (figures or {}).items()}
    return env.get_template("page.html.j2").render(
        record=record,
        view=view,
        charts=charts,
        words=words,
        figures=shown,
        script=script,
        script_digest=digest,
        style=_source("style.css"),
        tips=view.tips(record),
    )


@cache
def _environment() -> Environment:
    """Templates with escaping always on; a name that is missing is an error, not an empty text."""
    env = Environment(
        loader=PackageLoader("twinrun.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    env.filters.update(
        short=words.short, times=words.times, seconds=words.seconds, flips=words.flips, visible=words.visible
    )
    return env


def _source(name: str) -> str:
    """Text of a file of our own that goes in as it is: style and script hold no data."""
    env = _environment()
    assert env.loader is not None
    return env.loader.get_source(env, name)[0]
