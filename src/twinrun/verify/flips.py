"""Positions where the likeliest token changes, told apart: a tie inside the rounding noise, or a real change."""

from __future__ import annotations

from dataclasses import dataclass

from twinrun.verify.measure import Measured

NOISE_FACTOR = 2.0
"""A flip between two tokens needs the errors of both, so a tie is a gap up to twice the reference's worst error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Top-1 changes. `noise` is the oracle gap, in nats, up to which a change counts as a tie."""

    ties: int
    real: int
    noise: float
    worst_margin: float
    """Largest oracle gap that was flipped, nats; 0 without flips."""


def count_flips(rows: list[Measured], floor: float) -> Flips:
    """Count flips of the candidate against the reference; behind a router tie a flip is a tie too."""
    worst = max(
        (float(m.err_ref_max[~m.router_tie].max()) for m in rows if (~m.router_tie).any()), default=0.0
    )
    noise = NOISE_FACTOR * max(worst, floor)
    ties = real = 0
    margin = 0.0
    for m in rows:
        flipped = m.top1_ref != m.top1_cand
        tie = flipped & ((m.margin <= noise) | m.router_tie)
        ties += int(tie.sum())
        real += int((flipped & ~tie).sum())
        margin = max(margin, float(m.margin[flipped].max()) if bool(flipped.any()) else 0.0)
    return Flips(ties=ties, real=real, noise=noise, worst_margin=margin)
