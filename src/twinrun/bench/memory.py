"""Peak memory of one call above what was there before: exact for tensors, and a second witness from the kernel.

Tensors are counted by torch's own allocator: the profiler sees every allocation and release, temporaries inside a
kernel too, so the number is exact and the same on every run. Two other ways were left out. A thread that samples
the resident set misses what lives shorter than its period and sees pages, not bytes. A TorchDispatchMode sees the
results of operators and not what they use inside (the float32 copy that a bfloat16 log-softmax makes).
What a library takes straight from malloc (scratch of a matrix product) is no tensor; `peak_resident_bytes` sees it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_extra_bytes(fn: Callable[[], object], *, device: str | torch.device = "cpu") -> int:
    """Call `fn` once and return the most bytes its tensors held at one moment, above those held before.

    What `fn` returns counts: it is alive when the call ends. Tensors that `fn` releases and that existed before it
    count as negative.

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
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
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


def _changes(watched: Any) -> list[int]:
    """Signed bytes of every allocation and release on the CPU, in the order in which they happened."""
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    events = [e for e in events if e.device_type().name == "CPU"]
    return [int(e.nbytes()) for e in sorted(events, key=lambda e: int(e.start_ns()))]


def _peak(changes: Iterable[int]) -> int:
    """Return the highest partial sum, at least 0."""
    level = highest = 0
    for change in changes:
        level += change
        highest = max(highest, level)
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
