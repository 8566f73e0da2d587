"""How busy other processes were while a record was made: a speed from a shared machine must say so."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil

QUIET_CORES = 0.1
"""Up to this many cores used by other processes, on average, a machine is called quiet."""


class Machine:
    """How busy other processes kept the machine while a record was made."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._began, self._all, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def to_json(self) -> dict[str, Any]:
        """Return the load before and after, and the cores that others used on average."""
        wall = time.perf_counter() - self._began
        others = _busy_seconds() - self._all - (_own_seconds() - self._own)
        cores = max(0.0, others / wall)
        return {
            "wall_seconds": wall,
            "load_1min_before": self._load,
            "load_1min_after": os.getloadavg()[0],
            "cores_used_by_others_mean": cores,
            "quiet": cores <= QUIET_CORES,
        }


def _busy_seconds() -> float:
    """CPU seconds of all processes since boot."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
