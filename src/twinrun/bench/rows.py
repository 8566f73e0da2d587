"""Rows of a sweep on disk: one line a length, whole or absent, and the request that they answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinrun.errors import ConfigError
from twinrun.records.write import write_json, write_text

ROWS, REQUEST = "rows.jsonl", "request.json"


class RowFile:
    """`DIR/rows.jsonl` and `DIR/request.json`. The rows are rewritten whole for every new one: there are few.

    Args:
        folder: made if missing.
        request: what the rows answer.
        resume: go on with the rows that are there.

    Raises:
        ConfigError: the folder holds a sweep and `resume` is off, the sweep there answers another request (the
            key that differs is named), or its files are damaged.
    """

    def __init__(self, folder: str | Path, request: Mapping[str, Any], *, resume: bool = False) -> None:
        """Read what is there, or begin."""
        self.folder = Path(folder)
        self.rows: list[dict[str, Any]] = []
        if hold_request(self.folder, request, resume=resume):
            self.rows = _read_rows(self.folder / ROWS)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is on disk when this returns."""
        lines = [json.dumps(r, allow_nan=False) for r in (*self.rows, row)]
        write_text(self.folder / ROWS, "\n".join(lines) + "\n")
        self.rows.append(dict(row))


def hold_request(folder: str | Path, request: Mapping[str, Any], *, resume: bool) -> bool:
    """Write what a folder's rows answer, or hold it against what is there; returns whether it was there.

    Raises:
        ConfigError: the folder holds rows and `resume` is off, they answer another request (the key that differs is
            named), or the file is damaged.
    """
    home = Path(folder)
    wanted = json.loads(json.dumps(request, allow_nan=False))
    place = home / REQUEST
    if place.exists():
        if not resume:
            raise ConfigError(f"{home} already holds a sweep; add --resume, or choose another --out")
        _refuse_other(_read(place), wanted, home)
        return True
    if (home / ROWS).exists():
        raise ConfigError(f"{home} has {ROWS} without {REQUEST}; choose another --out")
    write_json(place, wanted)
    return False


def differing_key(old: Any, new: Any, path: str = "") -> str | None:
    """Return the path of the first entry in which two JSON values differ, or None.

    Example:
        >>> differing_key({"a": {"b": 1}}, {"a": {"b": 2}})
        'a.b'
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            inside = f"{path}.{key}" if path else str(key)
            if key not in old or key not in new:
                return inside
            found = differing_key(old[key], new[key], inside)
            if found is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next(
            (f for i, (a, b) in pairs if (f := differing_key(a, b, f"{path}[{i}]")) is not None), None
        )
    return None if old == new and type(old) is type(new) else path or "the request"


def _refuse_other(old: Any, new: Any, folder: Path) -> None:
    key = differing_key(old, new)
    if key is not None:
        raise ConfigError(
            f"{folder} holds a sweep of another request: {key} is {_at(old, key)} there and {_at(new, key)} "
            "here; ask for the same, or choose another --out"
        )


def _at(value: Any, path: str) -> str:
    """Return the value at a path of `differing_key`, cut for a message."""
    for part in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(value, list):
            value = value[int(part)]
        elif isinstance(value, dict):
            if part not in value:
                return "absent"
            value = value[part]
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(place: Path) -> Any:
    try:
        return json.loads(place.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {place}: {error}; choose another --out") from error


def _read_rows(place: Path) -> list[dict[str, Any]]:
    if not place.exists():
        return []
    rows = []
    for number, line in enumerate(place.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            row["length"], row["cells"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{place} line {number} is damaged ({error}); choose another --out") from error
        rows.append(row)
    return rows
