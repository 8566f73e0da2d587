"""Why a runner could not run at a length: too long, out of memory, or something else. The sweep goes on."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from twinrun.errors import ConfigError

Status = Literal["too long", "out of memory", "failed", "not judged"]
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One runner at one length that was not timed."""

    status: Status
    reason: str

    @classmethod
    def of(cls, error: Exception, tokens: int, context: int | None) -> Refusal:
        """Read an error; `tokens` were to fit into `context` (None: it has no limit)."""
        text = " ".join(str(error).split())[:240] or "no message"
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
            w in text.lower() for w in NO_MEMORY
        ):
            return cls("out of memory", text)
        if isinstance(error, ConfigError) and context is not None and tokens > context:
            return cls("too long", text)
        return cls("failed", text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}")


def foreseen(peaks: Mapping[int, int], length: int, free: int) -> Refusal | None:
    """Refuse a length whose memory will not do, going by the peaks that the runner had at shorter ones.

    The last two peaks are continued as a straight line: a lower bound where attention grows with the square
    of the length. Without two shorter lengths nothing is foreseen.

    Args:
        peaks: length -> peak bytes of this runner, measured.
        length: the one that comes next.
        free: bytes that are free now.

    Example:
        >>> foreseen({100: 100, 200: 200}, 400, free=300).reason
        '400 bytes foreseen from the peaks at 100 and 200 tokens, 300 bytes are free'
    """
    known = sorted(n for n in peaks if n < length)[-2:]
    if len(known) < 2:
        return None
    (a, b), gib = known, 2**30
    need = peaks[b] + max(0, peaks[b] - peaks[a]) * (length - b) // (b - a)
    if need <= free:
        return None
    shown = [f"{v / gib:.1f} GiB" if free >= gib / 10 else f"{v} bytes" for v in (need, free)]
    return Refusal(
        "out of memory",
        f"{shown[0]} foreseen from the peaks at {a:,} and {b:,} tokens, {shown[1]} are free",
    )


def clear_memory() -> None:
    """Give back what a failed run left behind."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # unannotated there
        torch.cuda.empty_cache()


def context_of(runner: Any) -> int | None:
    """Longest text of a runner, else the positions its model was built for; None without a limit or a model."""
    holder = runner if hasattr(runner, "max_context") else getattr(runner, "model", None)
    found = getattr(holder, "max_context", None)
    return found if isinstance(found, int) else None
