"""What every one-file page shares: templates that escape, our own style and script, the script's digest."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

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
