"""The record of a sweep over pruned prompts: Table 2 of SDTP, derived from the rows of the sweep and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twinrun.records.bench import Bench

PAPER: dict[int, dict[str, float]] = {
    4096: {"prefill": 1.52, "total": 1.08, "flops": 0.331, "memory": 0.0328},
    8192: {"prefill": 1.58, "total": 1.22, "flops": 0.351, "memory": 0.0725},
    16384: {"prefill": 1.67, "total": 1.31, "flops": 0.376, "memory": 0.1311},
    32768: {"prefill": 1.79, "total": 1.52, "flops": 0.409, "memory": 0.2067},
    65536: {"prefill": 1.87, "total": 1.64, "flops": 0.443, "memory": 0.2818},
    131072: {"prefill": 2.15, "total": 1.75, "flops": 0.472, "memory": 0.3426},
}
"""Table 2 of arXiv 2504.04514: Mistral-7B, keep ratio 0.9 a stage, 128 new tokens. Speed-ups, shares saved."""
PAPER_KEEP = {"mean_keep": 0.677, "mean_keep_squared": 0.481}
"""What the paper's operations say of its schedule: they are a*N + b*N^2 with these shares of the unpruned a and b."""
PARTS = ("prefill", "decode", "total")


@dataclass(frozen=True, kw_only=True)
class PruningBench:
    """What `twinrun prune bench` measured.

    Attributes:
        sweep: the record of `twinrun.bench` that everything here is derived from.
    """

    sweep: Bench

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One mapping a length and pruned side; keys in docs/prune-measures.md."""
        return list(_rows(self.sweep.rows))

    @property
    def passed(self) -> bool:
        """True unless a verdict is "different" or a side failed for another reason than room."""
        return self.sweep.passed

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types; the sweep stands in bench.json."""
        return {
            "request": self.sweep.request,
            "passed": self.passed,
            "rows": self.rows,
            "paper_keep": PAPER_KEEP,
        }

    def to_markdown(self) -> str:
        """Return the tables and the notes as Markdown."""
        from twinrun.records.pruning_words import pruning_markdown

        return pruning_markdown(self.to_json())


def kept_shares(lengths: tuple[int, ...] | list[int]) -> dict[str, float]:
    """Mean share of the prompt over the layers, and mean squared share, from the cache lengths after the prefill.

    The first layer is never pruned, so its length is the prompt's.

    Example:
        >>> kept_shares([100, 100, 50, 50])
        {'mean_keep': 0.75, 'mean_keep_squared': 0.625}
    """
    shares = [length / lengths[0] for length in lengths]
    return {
        "mean_keep": math.fsum(shares) / len(shares),
        "mean_keep_squared": math.fsum(s * s for s in shares) / len(shares),
    }


def _rows(rows: tuple[dict[str, Any], ...]) -> Iterator[dict[str, Any]]:
    for row in rows:
        base, *others = row["cells"]
        for cell in others:
            yield {
                "length": row["length"],
                "new_tokens": row["new_tokens"],
                "side": cell["runner"],
                "baseline": _side(base, row["length"]),
                "pruned": _side(cell, row["length"]),
                **_between(base, cell),
                "noise": row["noise"],
                "paper": PAPER.get(row["length"]),
            }


def _side(cell: Mapping[str, Any], length: int) -> dict[str, Any]:
    """One side: times in seconds (medians), cache lengths a layer, tokens of the prompt that the last layer kept."""
    found: dict[str, Any] = {"status": cell["status"], "reason": cell["reason"], "verdict": _verdict(cell)}
    keys = [f"{part}_latency_seconds" for part in PARTS]
    if cell["status"] != "timed":
        more = ("prefill_flops", "flops_per_token", "tensor_peak_bytes", "cuda_peak_bytes", "cache_bytes")
        rest = ("kv_lens_after_prefill", "tokens_kept", "tokens_pruned", "mean_keep", "mean_keep_squared")
        return found | dict.fromkeys([*keys, *rest, *more])
    lengths = list((cell["cache"] or {}).get("lengths_prefill", ()))
    kept = lengths[-1] if lengths else length
    return {
        **found,
        **{key: _median(cell[part]) for key, part in zip(keys, PARTS, strict=True)},
        "kv_lens_after_prefill": lengths,
        "tokens_kept": kept,
        "tokens_pruned": length - kept,
        **(kept_shares(lengths) if lengths else dict.fromkeys(PAPER_KEEP)),
        "prefill_flops": cell["prefill"]["flops"],
        "flops_per_token": None if cell["decode"] is None else cell["decode"]["flops_per_token"],
        "tensor_peak_bytes": cell["memory"]["tensor_peak_bytes"],
        "cuda_peak_bytes": cell["memory"]["cuda_peak_bytes"],
        "cache_bytes": None if cell["cache"] is None else cell["cache"]["bytes_end"],
    }


def _between(base: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """What pruning gains; None where one of the two was not timed."""
    keys = ("speedup", "speedup_p10", "speedup_p90", "within_noise", "kv_reduction", "flops_reduction")
    if base["status"] != "timed" or cell["status"] != "timed":
        return dict.fromkeys([*keys, "flops_allow", "share_of_flops", "memory_reduction"])
    ratios = cell["speed_up"]
    allowed = _quotient(base["prefill"]["flops"], cell["prefill"]["flops"])
    prefill = ratios["prefill"]["ratio_median"]
    held, whole = (_held(side) for side in (cell, base))
    memory = [_peak(side) for side in (cell, base)]
    return {
        "speedup": {part: _of(ratios[part], "ratio_median") for part in PARTS},
        "speedup_p10": {part: _of(ratios[part], "ratio_p10") for part in PARTS},
        "speedup_p90": {part: _of(ratios[part], "ratio_p90") for part in PARTS},
        "within_noise": {part: _of(ratios[part], "within_noise") for part in PARTS},
        "kv_reduction": None if not whole else 1 - held / whole,
        "flops_reduction": None if allowed is None else 1 - 1 / allowed,
        "flops_allow": allowed,
        "share_of_flops": None if allowed is None else prefill / allowed,
        "memory_reduction": 1 - memory[0] / memory[1] if memory[1] else None,
    }


def _verdict(cell: Mapping[str, Any]) -> dict[str, Any] | None:
    found = cell["verdict"]
    if found is None:
        return None
    return {key: found.get(key) for key in ("verdict", "reason", "kl_mean", "top1_agreement", "length")}


def _median(timing: Mapping[str, Any] | None) -> float | None:
    return None if timing is None else float(timing["seconds_median"])


def _of(found: Mapping[str, Any] | None, key: str) -> Any:
    return None if found is None else found[key]


def _quotient(a: int | None, b: int | None) -> float | None:
    return a / b if a and b else None


def _held(cell: Mapping[str, Any]) -> int:
    return sum((cell["cache"] or {}).get("lengths_prefill", ()))


def _peak(cell: Mapping[str, Any]) -> int:
    memory = cell["memory"]
    on_cuda = memory["cuda_peak_bytes"] is not None
    return int(memory["cuda_peak_bytes" if on_cuda else "tensor_peak_bytes"])
