"""How far apart two runs are at each module and position, in units of what rounding explains there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from twinrun.numerics.fingerprint import difference
from twinrun.numerics.precision import one_up
from twinrun.verify.activations import Activations, Row, Slot

ONE_UP_FACTOR = 16.0
"""One precision up: clean differences of a module reach 5 times the reference's error scaled by the roundoffs."""
ONE_UP_FLOOR_ULPS = 16.0
DEPLOYED_FACTOR = 4.0
"""In the deployed precision: clean errors of a module stay below twice the reference's own."""
DEPLOYED_FLOOR_ULPS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What counts as rounding at one tensor: `factor` times the reference's own error there, at least `floor`.

    All are relative to the length of the row; see `twinrun.numerics.fingerprint.difference`.
    """

    factor: float
    floor: float

    @classmethod
    def one_up(cls, low: torch.dtype) -> Noise:
        """Return the rule for candidates that run one precision above `low`."""
        eps_low, eps_high = torch.finfo(low).eps, torch.finfo(one_up(low)).eps
        return cls(factor=ONE_UP_FACTOR * eps_high / eps_low, floor=ONE_UP_FLOOR_ULPS * eps_high)

    @classmethod
    def deployed(cls, low: torch.dtype) -> Noise:
        """Return the rule for candidates that run in `low` itself."""
        return cls(factor=DEPLOYED_FACTOR, floor=DEPLOYED_FLOOR_ULPS * torch.finfo(low).eps)

    def limit(self, own: Tensor) -> float:
        """Largest difference that rounding explains, from the reference's own errors `[positions]`."""
        finite = own[torch.isfinite(own)]
        worst = float(finite.max()) if finite.numel() else 0.0
        return max(self.factor * worst, self.floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One module in one row. Tensors are `[tokens]`; `beyond` above 1 is more than rounding explains."""

    module: str
    row: int
    order: int
    error_in: Tensor
    beyond_in: Tensor
    error_out: Tensor
    beyond_out: Tensor
    noise: float

    def breaks_at(self, position: int) -> bool:
        """Whether outputs differ at a position where inputs agree."""
        return bool(self.beyond_out[position] > 1) and not bool(self.beyond_in[position] > 1)


def gaps(low: Activations, high: Activations, tried: Activations, number: int, noise: Noise) -> Iterator[Gap]:
    """Compare every module that both sides have, in the order in which the candidate's modules finished.

    Args:
        low: reference in its own precision; how far it is from `high` sets the noise.
        high: reference one precision up.
        tried: the candidate, in whichever precision `noise` was made for.
        number: which row of the case.
        noise: the rule.
    """
    slots: dict[str, list[Slot]] = {}
    for slot in tried.rows[number].prints:
        if tried.widths[slot] == high.widths.get(slot):
            slots.setdefault(slot.module, []).append(slot)
    rows = low.rows[number], high.rows[number], tried.rows[number]
    for order, module in enumerate(tried.order):
        own = slots.get(module, [])
        before = _worst(*rows, [s for s in own if s.is_input], noise)
        after = _worst(*rows, [s for s in own if not s.is_input], noise)
        if after is None:
            continue
        nothing = torch.zeros(len(rows[1].tokens), dtype=torch.float64)
        yield Gap(
            module=module,
            row=number,
            order=order,
            error_in=nothing if before is None else before[0],
            beyond_in=nothing if before is None else before[1],
            error_out=after[0],
            beyond_out=after[1],
            noise=after[2],
        )


def comparable(reference: Activations, candidate: Activations) -> str | None:
    """None if at least half of the modules are on both sides, else the reason why nothing can be compared."""
    if not candidate.order:
        return "no forward of the candidate's model was seen (compiled code and other engines run no hooks)"
    if not reference.order:
        return "no forward of the reference's model was seen"
    common = set(reference.order) & set(candidate.order)
    if 2 * len(common) < min(len(reference.order), len(candidate.order)):
        names = [side.order[0] for side in (reference, candidate)]
        return f"the two models are built differently: {len(common)} modules in common ({names[0]!r}, {names[1]!r})"
    return None


def _worst(
    low: Row, high: Row, tried: Row, slots: list[Slot], noise: Noise
) -> tuple[Tensor, Tensor, float] | None:
    """Error and share of the limit at each position, the worst of the tensors that all three have."""
    found: tuple[Tensor, Tensor, float] | None = None
    for slot in slots:
        own, truth, other = (row.prints.get(slot) for row in (low, high, tried))
        if own is None or truth is None or other is None:
            continue
        there = _filled(truth) & _filled(other)
        if not bool(there.any()):
            continue
        known = there & _filled(own)
        limit = noise.limit(difference(own[known], truth[known]))
        error = torch.zeros(len(there), dtype=torch.float64)
        error[there] = difference(other[there], truth[there])
        beyond = error / limit
        if found is None:
            found = (error, beyond, limit)
        else:
            worse = beyond > found[1]
            found = (torch.where(worse, error, found[0]), beyond.maximum(found[1]), max(limit, found[2]))
    return found


def _filled(prints: Tensor) -> Tensor:
    """Positions that were recorded (activations that are NaN have infinite fingerprints)."""
    return ~torch.isnan(prints[:, 0])
