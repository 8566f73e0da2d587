"""The two witnesses that decide between rounding and a bug. Either convicts. Neither has a tolerance to tune.

*Ratio*: the candidate's error over the reference's own, both against the oracle (the reference one
    precision up).
*Sweep*: both sides one precision up. Rounding shrinks with the unit roundoff, a logic bug stays where it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from twinrun.numerics.precision import dtype_name, ulp
from twinrun.verify.measure import Measured

RATIO_MAX = 2.0
"""FlashAttention's tests (test_flash_attn.py): worst error at most twice the same-precision baseline's."""
RATIO_RMS = 1.5
"""The mean rule of FlashAttention's key-value cache tests on Hopper, and Ascend's for language-model operators."""
FEW_POSITIONS = 5.0
"""Both limits are multiplied by 1 + 5 / sqrt(positions): rounding errors of a trained model sit in few positions,
so over a short text the reference may be right by luck. Clean float32 verdicts over 67 positions reach 1.85x
and 1.41x; over thousands of positions the published 2x and 1.5x stand."""
FLOOR_ULPS_MAX = 2.0
FLOOR_ULPS_RMS = 0.5
"""Errors below these many ulp of the deployed precision, at the size of the largest logit, are rounding whatever the
reference achieved: rounding the logits alone costs up to 0.5 ulp, 0.29 in the mean square."""
SWEEP_FACTOR = 64.0
"""Allowed gap one precision up, in units of the reference's error scaled by the ratio of unit roundoffs."""
SWEEP_FLOOR_ULPS = 16.0
"""The same bound never falls below this many ulp of the raised precision, at the size of the logits or of the
log-probability of a uniform choice, whichever is larger: what is compared are log-probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Errors in nats of log-probability; `floor` is what both were at least taken to be."""

    floor_max: float
    set_aside: int
    """Positions left out because a router tie came before them."""
    max: float | None = None
    rms: float | None = None
    err_ref_max: float = 0.0
    err_cand_max: float = 0.0
    err_ref_rms: float = 0.0
    err_cand_rms: float = 0.0
    allowed_max: float = RATIO_MAX
    allowed_rms: float = RATIO_RMS

    @property
    def passes(self) -> bool:
        """Whether both ratios are inside the rule; True when every position was set aside."""
        if self.max is None or self.rms is None:
            return True
        return self.max <= self.allowed_max and self.rms <= self.allowed_rms


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Largest gap of the two sides one precision up, and what rounding would explain; None if it could not be run."""

    gap: float | None
    allowed: float | None
    low: str
    high: str | None
    why_not: str | None = None

    @property
    def passes(self) -> bool:
        """Whether the gap is explained by rounding (True when the sweep could not be run)."""
        return self.gap is None or self.allowed is None or self.gap <= self.allowed


def ratio_witness(rows: list[Measured], low: torch.dtype) -> Ratio:
    """Hold the candidate's error against the reference's, pooled over all positions not behind a router tie."""
    kept = [_keep(m) for m in rows]
    size = max((float(m.logit_size.max()) for m in rows if len(m)), default=0.0)
    floor_max, floor_rms = FLOOR_ULPS_MAX * ulp(low, size), FLOOR_ULPS_RMS * ulp(low, size)
    whole = Measured.cat([m for m in kept if len(m)]) if any(len(m) for m in kept) else None
    aside = sum(len(m) for m in rows) - (len(whole) if whole is not None else 0)
    if whole is None:
        return Ratio(floor_max=floor_max, set_aside=aside)
    ref_max, cand_max = float(whole.err_ref_max.max()), float(whole.err_cand_max.max())
    ref_rms, cand_rms = _rms(whole.err_ref_ss, whole.vocab), _rms(whole.err_cand_ss, whole.vocab)
    slack = 1 + FEW_POSITIONS / math.sqrt(len(whole))
    return Ratio(
        max=cand_max / max(ref_max, floor_max),
        rms=cand_rms / max(ref_rms, floor_rms),
        err_ref_max=ref_max,
        err_cand_max=cand_max,
        err_ref_rms=ref_rms,
        err_cand_rms=cand_rms,
        floor_max=floor_max,
        allowed_max=RATIO_MAX * slack,
        allowed_rms=RATIO_RMS * slack,
        set_aside=aside,
    )


def sweep_witness(rows: list[Measured], low: torch.dtype, high: torch.dtype) -> Sweep:
    """Hold the gap one precision up against what the reference's error in the deployed precision predicts for it."""
    gap = max(float(m.gap_up_max.max()) for m in rows)
    size = max(1.0, math.log(rows[0].vocab), *(float(m.logit_size.max()) for m in rows))
    shrink = torch.finfo(high).eps / torch.finfo(low).eps
    kept = [m for m in map(_keep, rows) if len(m)] or rows
    noise = max(float(m.err_ref_max.max()) for m in kept)
    allowed = max(SWEEP_FACTOR * noise * shrink, SWEEP_FLOOR_ULPS * ulp(high, size))
    return Sweep(gap=gap, allowed=allowed, low=dtype_name(low), high=dtype_name(high))


def _keep(measured: Measured) -> Measured:
    """Drop positions behind a router tie."""
    keep = ~measured.router_tie
    if bool(keep.all()):
        return measured
    values = {f: getattr(measured, f)[keep] for f in measured.__slots__ if f != "vocab"}
    return Measured(**values, vocab=measured.vocab)


def _rms(sum_of_squares: torch.Tensor, vocab: int) -> float:
    return float((sum_of_squares.mean() / vocab).sqrt())
