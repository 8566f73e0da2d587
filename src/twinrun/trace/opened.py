"""Open a recorded trace of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twinrun.trace.canvas_trace import CANVAS_SCHEMA, CanvasTrace
from twinrun.trace.meta import schema_of
from twinrun.trace.record import Trace


def open_trace(folder: str | Path) -> Any:
    """Return the `Trace` or `CanvasTrace` in a folder.

    Raises:
        TraceError: no trace, or one that was truncated or changed.
    """
    return CanvasTrace.open(folder) if schema_of(folder) == CANVAS_SCHEMA else Trace.open(folder)
