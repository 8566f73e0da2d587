"""Distance from the ceiling: the share of the machine's best that a prefill or a token reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinrun.bench.ceilings import Ceilings

OVER = (
    "over 100 %: counted work that was skipped (the masked half of attention), or a ceiling measured in a "
    "slower moment"
)
UNCOUNTED = "no operation was counted: packed products, or an engine outside torch"
REUSED = "part of the prompt came from a kept cache, so its operations say nothing about this time"
NO_CACHE = "recomputes the prefix, so arithmetic is its limit: see mfu"
ROUTED = "a mixture of experts: a token reads some of the weights only"
OVER_READ = (
    "over 100 %: part came from a nearer cache than the ceiling's, or that was measured in a slower moment"
)
IN_CACHE = (
    "what a token reads fits into the last-level cache ({:,.0f} MiB), so memory bandwidth is no ceiling; held "
    "against reads of as many bytes out of that cache"
)
UNSEEN = "an engine of its own: its weights cannot be seen"
PACKED = "packed weights: their bytes cannot be seen"
UNKNOWN = "the size of the last-level cache is unknown: reads may come from it"


def arithmetic_share(flops: float, seconds: float, dtype: str, ceilings: Ceilings) -> dict[str, Any]:
    """Model FLOPs utilisation: operations a second over those of the fastest matrix product in the same dtype.

    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311v5, section 4.1 and appendix B (there against the
    datasheet's peak; here against a measured one).

    Returns:
        `flops_per_second`, `mfu` and `mfu_note`; None where nothing was counted.
    """
    ceiling = ceilings.matmul.get(dtype)
    if not flops or not seconds or ceiling is None:
        return {"flops_per_second": None, "mfu": None, "mfu_note": UNCOUNTED}
    reached = flops / seconds
    share = reached / ceiling.flops_per_second
    return {"flops_per_second": reached, "mfu": share, "mfu_note": OVER if share > 1 else None}


def not_read(why: str | None) -> dict[str, Any]:
    """The keys of `reading_share` where nothing is known, and why."""
    keys = ("read_bytes_per_token", "read_bytes_per_second", "mbu", "cache_read_share")
    return {**dict.fromkeys(keys), "read_note": why}


def cache_bytes_read(held: int | None, lengths_prefill: Sequence[int], lengths_end: Sequence[int]) -> float:
    """Bytes of keys and values that a token reads on average, from the bytes held at the end.

    The cache is taken to grow evenly from the prompt to the end; empty slots of a preallocated cache count as
    a part of the filled ones.

    Example:
        >>> cache_bytes_read(1200, [10, 10], [20, 20])
        900.0
    """
    if not held or not sum(lengths_end):
        return 0.0
    mean = (sum(lengths_prefill) + sum(lengths_end)) / 2
    return held * mean / sum(lengths_end)


def reading_share(
    weight_bytes: int, cache_bytes: float, token_seconds: float, ceilings: Ceilings, *, routed: bool = False
) -> dict[str, Any]:
    """Model bandwidth utilisation of decode: bytes that a token must read, a second, over the fastest read measured.

    Source: the bandwidth that gpt-fast prints beside tokens/s (weight bytes times tokens/s), with keys and
    values added.

    Where a token's bytes fit into the last-level cache they need not come from memory: then `mbu` is None and
    `cache_read_share` holds them against a read of the same size out of that cache.

    Args:
        weight_bytes: weights that one token reads.
        cache_bytes: keys and values that one token reads on average; 0 for a runner without a cache.
        token_seconds: time of a token.
        ceilings: measured in the same run.
        routed: whether experts are chosen, so that `weight_bytes` is too many.
    """
    if routed or not cache_bytes:
        return not_read(ROUTED if routed else NO_CACHE)
    size = weight_bytes + cache_bytes
    speed = size / token_seconds
    found = not_read(None) | {"read_bytes_per_token": size, "read_bytes_per_second": speed}
    cache = ceilings.last_level_cache_bytes
    if cache is not None and size <= cache and ceilings.cache_read is not None:
        found["cache_read_share"] = speed / ceilings.cache_read.bytes_per_second
        found["read_note"] = IN_CACHE.format(cache / 2**20)
    else:
        found["mbu"] = speed / ceilings.memory_read.bytes_per_second
        found["read_note"] = None if ceilings.beyond_cache else UNKNOWN
    share = found["mbu"] if found["mbu"] is not None else found["cache_read_share"]
    if share > 1:
        found["read_note"] = "; ".join(filter(None, [OVER_READ, found["read_note"]]))
    return found
