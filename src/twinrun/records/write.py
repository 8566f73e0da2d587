"""Files that are whole or absent: written beside their place and moved there. JSON refuses NaN."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from twinrun.errors import ConfigError, NonFiniteError


@contextmanager
def whole_file(path: str | Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that stands at `path` only when the block has ended well; a reader never sees a part.

    Missing folders are made. The temporary file stands in the same folder, because a move between file
    systems is a copy. With `sync` it also outlasts a loss of power as soon as this returns; some milliseconds.

    Raises:
        ConfigError: the place cannot be written to, or the disk is full; the message says why. What stood at
            `path` before is unharmed.
    """
    place = Path(path)
    part = place.with_name(f".{place.name}.{secrets.token_hex(6)}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(part, place)
    except OSError as error:
        fix = "free some space" if error.errno == errno.ENOSPC else "choose another folder"
        raise ConfigError(f"cannot write {place}: {error.strerror or error}; {fix}") from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes, *, sync: bool = True) -> Path:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        ConfigError: see `whole_file`.
    """
    with whole_file(path, sync=sync) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all; half of a surrogate pair is written as its escape."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, record: Any) -> Path:
    """Write `record` as JSON, whole or not at all.

    Raises:
        NonFiniteError: a NaN or an infinity; the message names the key. Unknown is null.
        ConfigError: something that JSON has no form for, or a place that cannot be written to.
    """
    return write_text(path, to_json(record) + "\n")


def to_json(record: Any) -> str:
    r"""Return `record` as indented JSON text.

    Example:
        >>> to_json({"seconds": None})
        '{\n  "seconds": null\n}'
    """
    where = _first_not_finite(record, "")
    if where is not None:
        raise NonFiniteError(f"{where or 'the record'} is NaN or infinite; JSON has no such number, use null")
    try:
        return json.dumps(record, allow_nan=False, ensure_ascii=False, indent=2)
    except TypeError as error:
        raise ConfigError(f"the record cannot be written as JSON: {error}; give plain types") from error


def _first_not_finite(value: Any, path: str) -> str | None:
    """Return the path of the first number that is not finite, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, Mapping):
        inside = [(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        inside = [(v, f"{path}[{i}]") for i, v in enumerate(value)]
    else:
        return None
    return next((found for v, p in inside if (found := _first_not_finite(v, p)) is not None), None)
