"""The file that makes a folder a trace: what kind of trace, and everything but the steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twinrun.errors import TraceError

META = "trace.json"


def read_meta(place: Path, schema: str) -> dict[str, Any]:
    """Read `trace.json`, which must be of the schema.

    Raises:
        TraceError: none, a damaged one, or one of another kind or version.
    """
    found = _parsed(place)
    if not isinstance(found, dict) or found.get("schema") != schema:
        kind = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise TraceError(
            f"{place / META} is {kind!r}, not {schema!r}; read it with the version that wrote it"
        )
    return found


def schema_of(folder: str | Path) -> str | None:
    """Kind of trace in a folder; None if its file says none.

    Raises:
        TraceError: no trace, or a damaged one.
    """
    found = _parsed(Path(folder))
    kind = found.get("schema") if isinstance(found, dict) else None
    return kind if isinstance(kind, str) else None


def _parsed(place: Path) -> Any:
    path = place / META
    if not path.is_file():
        raise TraceError(f"{place} holds no {META}; give a folder that `twinrun trace --out` wrote")
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"{path} was truncated or changed ({error}); record the trace again") from error
