"""The record of a memory plan: predicted bytes, what fits, and what is recommended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from twinrun.numerics.units import show_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """One kind of cache. Bytes are of the whole batch at the end of the request; totals generate from the last row."""

    kind: str
    device_bytes: int
    host_bytes: int
    total_bytes: int
    fits: bool
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsPlan:
    """One way to make logits. `prefill_bytes` and `decode_bytes` are peaks above the weights, with a dynamic cache."""

    policy: str
    logits_bytes: int
    prefill_bytes: int
    decode_bytes: int
    total_bytes: int
    fits: bool
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do, in words and as settings. Sizes are the largest that fit with them; None where not searched."""

    policy: str | None
    cache: str | None
    total_bytes: int
    largest_context: int
    largest_batch: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Predicted bytes of running one model; see `plan_memory`. Every size is in bytes, of tensors."""

    model: str
    family: str
    parameters: int
    dtype: str
    attention: str
    device: str
    context: int
    batch: int
    new_tokens: int
    max_context: int | None
    vocab_size: int
    memory_bytes: int
    memory_from: str
    weights_bytes: int
    weights_by_dtype: dict[str, int]
    activations_bytes: dict[str, int | None]
    caches: tuple[CachePlan, ...]
    logits: tuple[LogitsPlan, ...]
    fits: bool
    advice: Advice
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """What it is for, the totals, and the advice."""
        totals = ", ".join(f"{p.policy} {show_bytes(p.total_bytes)}" for p in self.logits)
        return (
            f"MemoryPlan({self.model!r}, {self.dtype}, {self.attention}, {self.batch} x {self.context} tokens"
            f" + {self.new_tokens}: {totals}; {self.advice.text})"
        )

    def cache(self, kind: str) -> CachePlan:
        """The plan of one kind of cache."""
        return next(row for row in self.caches if row.kind == kind)

    def policy(self, name: str) -> LogitsPlan:
        """The plan of one way to make logits."""
        return next(row for row in self.logits if row.policy == name)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)
