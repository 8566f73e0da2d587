"""Peak memory of one call above what was there before: exact for tensors, and a second witness from the kernel.

Tensors are counted by torch's own allocator: the profiler sees every allocation and release, temporaries inside a
kernel too, so the number is exact and the same on every run. Two other ways were left out. A thread that samples
the resident set misses what lives shorter than its period and sees pages, not bytes. A TorchDispatchMode sees the
results of operators and not what a kernel takes for itself (the buffers of fused attention).
What a library takes straight from malloc (scratch of a matrix product) is no tensor; `peak_resident_bytes` sees it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

QUIET = "KINETO_LOG_LEVEL"
"""Read by the profiler when it starts; below 6 some builds announce every start and stop on stderr."""
_CPU = 0
"""Device type of a processor in torch's traces."""
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_extra_bytes(fn: Callable[[], object], *, device: str | torch.device = "cpu") -> int:
    """Call `fn` once and return the most bytes its tensors held at one moment, above those held before.

    What `fn` returns counts: it is alive when the call ends. On a CPU, releasing a tensor that is older than the
    call makes no room; on a CUDA device it does.

    Args:
        fn: callable without arguments. Call it once before, so that caches it fills for good are not counted.
        device: whose memory; on a CUDA device torch's caching allocator is asked, which counts the same bytes.

    Returns:
        Bytes, at least 0. On a CPU each allocation counts with the size that was asked for.

    Cost: one call under the profiler, which adds microseconds an operator; do not time this call.

    Example:
        >>> peak_extra_bytes(lambda: torch.zeros(1000))
        4000
    """
    place = torch.device(device)
    gc.collect()
    if place.type == "cuda":
        return _peak_cuda(fn, place)
    os.environ.setdefault(QUIET, "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        result = fn()
    del result
    return _peak(_changes(watched))


def peak_resident_bytes(fn: Callable[[], object]) -> int | None:
    """Call `fn` once and return how far the process's resident memory rose above its level before, in bytes.

    The Linux kernel keeps the high-water mark itself, so nothing is missed between samples, whoever allocates.
    Free memory that malloc still holds is handed back first. The number is in whole pages and moves a little from
    run to run: a check of `peak_extra_bytes`, not a substitute.

    Returns:
        Bytes, at least 0, or None where the kernel does not offer this (other systems, some containers).

    Cost: one call at full speed.
    """
    gc.collect()
    try:
        _trim()
        _CLEAR_REFS.write_text("5")
        before = _status_bytes("VmRSS")
        result = fn()
        after = _status_bytes("VmHWM")
    except OSError:
        return None
    del result
    return max(0, after - before)


def _changes(watched: profile) -> list[tuple[int, int]]:
    """(address, signed bytes) of allocations and releases on the CPU in order, from the trace that torch documents."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == _CPU]
    found.sort(key=lambda e: float(e["ts"]))
    return [(int(e["args"]["Addr"]), int(e["args"]["Bytes"])) for e in found]


def _peak(changes: Iterable[tuple[int, int]]) -> int:
    """Return the most bytes alive at once among blocks whose allocation was seen.

    NOTE: the release of an older block must be left out by its address. torch knows its size only by an entry that
    an earlier profile may have left at that address for another block, so the number it gives can be wrong.
    """
    alive: dict[int, int] = {}
    level = highest = 0
    for address, size in changes:
        if size > 0:
            alive[address] = size
            level += size
            highest = max(highest, level)
        else:
            level -= alive.pop(address, 0)
    return highest


def _peak_cuda(fn: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = fn()
    torch.cuda.synchronize(device)
    del result
    return max(0, torch.cuda.max_memory_allocated(device) - before)


def _trim() -> None:
    """Ask glibc to return free pages; other C libraries keep theirs, and the number then reads too low."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
