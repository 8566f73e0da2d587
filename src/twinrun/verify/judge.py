"""From evidence to verdict: findings first, then the two witnesses, then the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from twinrun.errors import NonFiniteError
from twinrun.numerics.precision import dtype_name
from twinrun.verify.budget import Budget
from twinrun.verify.evidence import Evidence
from twinrun.verify.flips import Flips, count_flips
from twinrun.verify.measure import Measured
from twinrun.verify.summary import by_case, by_position, overall
from twinrun.verify.verdict import Verdict, Word
from twinrun.verify.witness import RATIO_MAX, Ratio, Sweep, ratio_witness, sweep_witness


def judge(
    evidence: Evidence,
    reference: Any,
    candidate: Any,
    budget: Budget | None,
    low: torch.dtype,
    high: torch.dtype,
) -> Verdict:
    """Decide on the evidence of all cases; `low` is the deployed precision and `high` the oracle's.

    Raises:
        NonFiniteError: the reference itself gives NaN, so nothing can be held against it.
    """
    _refuse_nan_reference(evidence, low)
    usable = [m for m in evidence.rows if bool(m.cand_finite.all())]
    heard = _Heard.of(evidence, usable, low, high)
    numbers: dict[str, Any] = dict(overall(usable))
    word, reason = heard.decide(evidence.findings, numbers, budget)
    return Verdict(
        verdict=word,
        reason=reason,
        reference=_name(reference),
        candidate=_name_beside(reference, candidate),
        model=str(getattr(reference, "model_name", type(reference).__name__)),
        dtype=dtype_name(low),
        positions=sum(map(len, evidence.rows)),
        ratio_max=heard.ratio.max if heard.ratio else None,
        ratio_rms=heard.ratio.rms if heard.ratio else None,
        **numbers,
        flips=heard.flips,
        blame=heard.blame(evidence) if word in ("different", "lossy") else None,
        findings=evidence.findings,
        ratio=heard.ratio,
        sweep=heard.sweep,
        seconds=evidence.seconds,
        paths=evidence.paths,
        cases=by_case(evidence.labels, evidence.rows, heard.ratio),
        table=by_position(evidence.labels, evidence.rows),
    )


def _name(side: Any) -> str:
    return str(getattr(side, "name", type(side).__name__))


def _name_beside(reference: Any, candidate: Any) -> str:
    """Name of the candidate, with its model where that is called otherwise than the reference's."""
    models = [getattr(side, "model_name", None) for side in (reference, candidate)]
    name = _name(candidate)
    return name if None in models or models[0] == models[1] else f"{name} on {models[1]}"


def _refuse_nan_reference(evidence: Evidence, low: torch.dtype) -> None:
    for label, m in zip(evidence.labels, evidence.rows, strict=True):
        if not bool(m.ref_finite.all()):
            at = int(m.position[(~m.ref_finite).nonzero()[0, 0]])
            raise NonFiniteError(
                f"the reference gives NaN at position {at} of {label} in {dtype_name(low)}; "
                "judge it in a wider precision"
            )


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the witnesses said."""

    ratio: Ratio | None
    sweep: Sweep
    flips: Flips
    rows: list[Measured]

    @classmethod
    def of(cls, evidence: Evidence, rows: list[Measured], low: torch.dtype, high: torch.dtype) -> _Heard:
        ratio = ratio_witness(rows, low) if rows else None
        why = evidence.why_no_sweep or (None if rows else "no position could be compared")
        if why is None:
            sweep = sweep_witness(rows, low, high)
        else:
            sweep = Sweep(gap=None, allowed=None, low=dtype_name(low), high=None, why_not=why)
        return cls(ratio, sweep, count_flips(rows, ratio.floor_max if ratio else 0.0), rows)

    def decide(self, findings: list[str], numbers: dict[str, Any], budget: Budget | None) -> tuple[Word, str]:
        """Return the verdict and its reason."""
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            return "different", findings[0] + more
        if self.ratio is None:
            return "different", "no position could be compared"
        if self.sweep.passes and all(bool(m.same_bits.all()) for m in self.rows):
            return "identical", f"all {sum(map(len, self.rows)):,} positions agree bit for bit"
        if self.ratio.max is None and self.sweep.gap is None:
            return (
                "different",
                f"no witness could be heard, so nothing is proved: {self.in_words(self.ratio)}",
            )
        if self.ratio.passes and self.sweep.passes:
            return "equivalent", self.in_words(self.ratio)
        if budget is None:
            return "different", self.in_words(self.ratio)
        measured = {name: numbers[name] for name in ("kl_mean", "kl_max", "top1_agreement")}
        broken = budget.exceeded(**measured)
        if broken:
            return "different", f"{broken}; {self.in_words(self.ratio)}"
        return "lossy", f"inside the budget; {self.in_words(self.ratio)}"

    def in_words(self, ratio: Ratio) -> str:
        """Say both witnesses' numbers and the flips."""
        return "; ".join((self._ratio_in_words(ratio), self._flips_in_words(), self._sweep_in_words()))

    def _ratio_in_words(self, ratio: Ratio) -> str:
        if ratio.max is None or ratio.rms is None:
            return "every position lies behind a router tie, so the ratio was not heard"
        over = (
            ""
            if ratio.passes
            else f" (the rule allows {ratio.allowed_max:.2g}x and {ratio.allowed_rms:.2g}x here)"
        )
        aside = f", {ratio.set_aside} positions set aside behind router ties" if ratio.set_aside else ""
        return (
            f"the candidate's worst error is {ratio.max:.3g}x the reference's own {self.sweep.low} error, "
            f"{ratio.rms:.3g}x in the mean square{over}{aside}"
        )

    def _flips_in_words(self) -> str:
        total, positions = self.flips.ties + self.flips.real, sum(map(len, self.rows))
        words = f"{total} of {positions:,} top tokens flip"
        if not total:
            return words
        return (
            f"{words}, {self.flips.real} beyond the rounding noise"
            if self.flips.real
            else f"{words}, all ties"
        )

    def _sweep_in_words(self) -> str:
        sweep = self.sweep
        if sweep.gap is None or sweep.allowed is None:
            return f"the precision sweep was not heard: {sweep.why_not}"
        verb = "leaves" if sweep.passes else "does not shrink the difference: it leaves"
        return (
            f"one precision up ({sweep.high}) {verb} {sweep.gap:.2g} nats "
            f"where rounding explains up to {sweep.allowed:.2g}"
        )

    def blame(self, evidence: Evidence) -> str | None:
        """Name the first place: a finding, or the first position that stands out for either witness."""
        if evidence.findings:
            return evidence.findings[0]
        for label, m in zip(evidence.labels, evidence.rows, strict=True):
            odd = torch.zeros(len(m), dtype=torch.bool)
            if self.sweep.allowed is not None:
                odd |= m.gap_up_max > self.sweep.allowed
            if self.ratio is not None:
                odd |= m.err_cand_max > RATIO_MAX * max(self.ratio.err_ref_max, self.ratio.floor_max)
            if bool(odd.any()):
                first = int(m.position[odd.nonzero()[0, 0]])
                return f"{label}: first at position {first}, {int(odd.sum())} of {len(m)} positions stand out"
        return None
