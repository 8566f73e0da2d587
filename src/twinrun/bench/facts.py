"""What is measured of a runner at a length besides time: memory, operations, cache; in untimed runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from twinrun.bench.cache import watching
from twinrun.bench.flops import Flops, count_flops
from twinrun.bench.memory import peak_extra_bytes, peak_resident_bytes
from twinrun.bench.passage import Passage, run_forced

PROFILED_TOKENS = 16
"""Tokens of the run under the profiler, which keeps a record of every allocation."""
RUNS = 4
"""Calls of a runner that `measure_facts` makes, for progress bars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Memory in bytes above what was there before; None where it cannot be seen."""

    tensor_peak_bytes: int
    tensor_peak_tokens: int
    resident_peak_bytes: int | None
    cuda_peak_bytes: int | None
    cache_bytes: int | None
    """Held when the last token is there."""
    flops: Flops
    passage: Passage
    """The whole run whose resident memory was watched: also the warm-up."""

    def memory_json(self) -> dict[str, Any]:
        """Return the peaks as JSON types."""
        return {
            "tensor_peak_bytes": self.tensor_peak_bytes,
            "tensor_peak_new_tokens": self.tensor_peak_tokens,
            "resident_peak_bytes": self.resident_peak_bytes,
            "cuda_peak_bytes": self.cuda_peak_bytes,
        }


def measure_facts(
    runner: Any,
    ids: Sequence[int],
    length: int,
    new_tokens: int,
    *,
    device: torch.device,
    tick: Callable[[str], object],
) -> Facts:
    """Run a runner untimed: two tokens, then counted, then whole for the kernel's high-water mark, then profiled.

    Only while operations are counted is a hook set or an operator intercepted: a runner may take another path then.
    The whole run is the warm-up of the timed ones.

    Cost: one whole run, one of up to 16 tokens under the profiler, and three prompts.
    """
    prompt = list(ids[:length])
    tick("first run")
    run_forced(runner, prompt, new_tokens, stop_after=2)
    tick("operations")
    with watching(getattr(runner, "module", None)) as seen:
        flops = count_flops(runner, ids, length, new_tokens)
        held = seen.num_bytes if flops.reached_end else None
    tick("resident memory")
    kept: list[Passage] = []
    resident = peak_resident_bytes(lambda: kept.append(run_forced(runner, prompt, new_tokens)))
    if not kept:  # this kernel has no high-water mark; the run is the warm-up all the same
        kept.append(run_forced(runner, prompt, new_tokens))
    tick("tensor memory")
    on_cuda = device.type == "cuda"
    profiled = new_tokens if on_cuda else min(new_tokens, PROFILED_TOKENS)
    peak = peak_extra_bytes(
        lambda: run_forced(runner, prompt, new_tokens, stop_after=profiled), device=device
    )
    return Facts(
        tensor_peak_bytes=peak,
        tensor_peak_tokens=profiled,
        resident_peak_bytes=resident,
        cuda_peak_bytes=peak if on_cuda else None,
        cache_bytes=held,
        flops=flops,
        passage=kept[0],
    )
