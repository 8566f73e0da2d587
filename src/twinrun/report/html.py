"""What every one-file page shares: templates that escape, our own style and script, the script's digest."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from twinrun.report import words


@cache
def environment() -> Environment:
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
        short=words.short,
        times=words.times,
        seconds=words.seconds,
        flips=words.flips,
        visible=words.visible,
        harmless=words.harmless,
    )
    return env


def source(name: str) -> str:
    """Text of a file of our own that goes in as it is: style and script hold no data."""
    env = environment()
    assert env.loader is not None
    return env.loader.get_source(env, name)[0]


def digest(script: str) -> str:
    """SHA-256 of a script in base64, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def document(template: str, **shown: Any) -> str:
    """Render a template that extends `frame.html.j2`, with the frame's style and the script that shows tips.

    Args:
        template: its file.
        shown: what it names; `tips` (a list a text of what each token shows) is the frame's own.
    """
    script = source("script.js")
    return (
        environment()
        .get_template(template)
        .render(script=script, script_digest=digest(script), style=source("style.css"), **shown)
    )
