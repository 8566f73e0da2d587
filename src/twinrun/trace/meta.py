"""A trace on disk: the file that makes a folder one (its kind, and everything but the steps), and both sides' steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from twinrun.errors import TraceError
from twinrun.records.write import write_json
from twinrun.trace.identity import why_different
from twinrun.trace.journal import Journal
from twinrun.trace.reader import read_steps

META = "trace.json"
SIDES: tuple[Literal["reference", "candidate"], ...] = ("reference", "candidate")


def write_trace(folder: str | Path, sides: Iterable[Any], meta: dict[str, Any]) -> Path:
    """Write a trace to an empty folder: each side's steps as Parquet and safetensors, then `trace.json`.

    Raises:
        ConfigError: the folder cannot be written to or holds a trace already.
    """
    place = Path(folder)
    for side in sides:
        with closing(Journal(place / side.who)) as journal:
            journal.add(side.steps)
    write_json(place / META, meta)
    return place


def read_side(
    place: Path, who: str, meta: dict[str, Any], make: Callable[..., Any], read: Callable[[Any], Any]
) -> Any:
    """Return a recorded side with its steps, built by `make` and `read`; None if it had not begun."""
    if who not in meta["sides"]:
        return None
    side = make(**meta["sides"][who])
    side.steps = read_steps(place / who, read)
    return side


def refuse_other_model(ours: Any, theirs: Any) -> None:
    """Refuse to compare sides of different models.

    Raises:
        TraceError: they are; says what differs.
    """
    reason = why_different(ours.identity, theirs.identity)
    if reason is not None:
        raise TraceError(f"the traces are of different models ({reason}); record both with one model")


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
