"""From evidence to verdict: findings first, then the two witnesses, then the budget."""

from __future__ import annotations

from typing import Any

import torch

from twinrun.errors import NonFiniteError
from twinrun.numerics.precision import dtype_name
from twinrun.verify.budget import Budget
from twinrun.verify.flips import Flips, count_flips
from twinrun.verify.measure import Measured
from twinrun.verify.verdict import Verdict, Word
from twinrun.verify.witness import RATIO_MAX, RATIO_RMS, Ratio, Sweep, ratio_witness, sweep_witness


def judge(
    evidence: Any, reference: Any, candidate: Any, budget: Budget | None, low: torch.dtype, high: torch.dtype
) -> Verdict:
    """Decide. `evidence` is `twinrun.verify.verify.Evidence`.

    Raises:
        NonFiniteError: the reference itself gives NaN, so nothing can be held against it.
    """
    rows: list[Measured] = evidence.rows
    for label, m in zip(evidence.labels, rows, strict=True):
        if not bool(m.ref_finite.all()):
            at = int(m.position[(~m.ref_finite).nonzero()[0, 0]])
            raise NonFiniteError(
                f"the reference gives NaN at position {at} of {label} in {dtype_name(low)}; judge "
                "it in a wider precision"
            )
    nan = [
        f"{label}: the candidate gives NaN at position {int(m.position[(~m.cand_finite).nonzero()[0, 0]])}"
        for label, m in zip(evidence.labels, rows, strict=True)
        if not bool(m.cand_finite.all())
    ]
    findings = [*evidence.findings, *nan]
    usable = [m for m in rows if bool(m.cand_finite.all())]
    ratio = ratio_witness(usable, low) if usable else None
    sweep = _sweep(evidence, usable, low, high)
    flips = (
        count_flips(usable, ratio.floor_max)
        if ratio is not None
        else Flips(ties=0, real=0, noise=0.0, worst_margin=0.0)
    )
    numbers = _numbers(usable)
    word, reason = _decide(findings, ratio, sweep, flips, numbers, usable, budget)
    return Verdict(
        verdict=word,
        reason=reason,
        reference=_name(reference),
        candidate=_name(candidate),
        model=str(getattr(reference, "model_name", type(reference).__name__)),
        dtype=dtype_name(low),
        positions=sum(map(len, rows)),
        ratio_max=ratio.max if ratio else None,
        ratio_rms=ratio.rms if ratio else None,
        **numbers,
        flips=flips,
        blame=findings[0]
        if findings
        else _first_place(evidence, ratio, sweep)
        if word in ("different", "lossy")
        else None,
        findings=findings,
        ratio=ratio,
        sweep=sweep,
        seconds=evidence.seconds,
        paths=evidence.paths,
        cases=[_case_row(label, m, ratio) for label, m in zip(evidence.labels, rows, strict=True)],
        table=_table(evidence.labels, rows),
    )


def _name(side: Any) -> str:
    return str(getattr(side, "name", type(side).__name__))


def _sweep(evidence: Any, usable: list[Measured], low: torch.dtype, high: torch.dtype) -> Sweep:
    has_gap = usable and not any(bool(torch.isnan(m.gap_up_max).all()) for m in usable)
    if evidence.why_no_sweep is None and has_gap:
        return sweep_witness(usable, low, high)
    why = evidence.why_no_sweep or "no aligned positions"
    return Sweep(gap=None, allowed=None, low=dtype_name(low), high=None, why_not=why)


def _decide(
    findings: list[str],
    ratio: Ratio | None,
    sweep: Sweep,
    flips: Flips,
    numbers: dict[str, Any],
    rows: list[Measured],
    budget: Budget | None,
) -> tuple[Word, str]:
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        return "different", findings[0] + more
    if ratio is None:
        return "different", "no position could be compared"
    if sweep.passes and all(bool(m.same_bits.all()) for m in rows):
        return "identical", f"all {sum(map(len, rows)):,} positions agree bit for bit"
    words = _in_words(ratio, sweep, flips, sum(map(len, rows)))
    if ratio.passes and sweep.passes:
        return "equivalent", words
    if budget is None:
        return "different", words
    broken = budget.exceeded(
        kl_mean=numbers["kl_mean"], kl_max=numbers["kl_max"], top1_agreement=numbers["top1_agreement"]
    )
    return ("different", f"{broken}; {words}") if broken else ("lossy", f"inside the budget; {words}")


def _in_words(ratio: Ratio, sweep: Sweep, flips: Flips, positions: int) -> str:
    if ratio.max is None or ratio.rms is None:
        first = "every position lies behind a router tie, so the ratio was not heard"
    else:
        over = "" if ratio.passes else f" (the rule allows {RATIO_MAX:g}x and {RATIO_RMS:g}x)"
        first = (
            f"the candidate's worst error is {ratio.max:.3g}x the reference's own {sweep.low} error, "
            f"{ratio.rms:.3g}x in the mean square{over}"
        )
        if ratio.set_aside:
            first += f", {ratio.set_aside} of {positions:,} positions set aside behind router ties"
    total = flips.ties + flips.real
    kind = (
        "none"
        if not total
        else "all ties"
        if not flips.real
        else f"{flips.real} of them beyond the rounding noise"
    )
    second = f"{total} of {positions:,} top tokens flip" + (f", {kind}" if total else "")
    if sweep.gap is None or sweep.allowed is None:
        return f"{first}; {second}; the precision sweep was not heard: {sweep.why_not}"
    verb = "leaves" if sweep.passes else "does not shrink the difference: it leaves"
    third = (
        f"one precision up ({sweep.high}) {verb} {sweep.gap:.2g} nats where rounding explains up to "
        f"{sweep.allowed:.2g}"
    )
    return f"{first}; {second}; {third}"


def _first_place(evidence: Any, ratio: Ratio | None, sweep: Sweep) -> str | None:
    """Name the first position that stands out for either witness."""
    for label, m in zip(evidence.labels, evidence.rows, strict=True):
        odd = torch.zeros(len(m), dtype=torch.bool)
        if sweep.allowed is not None:
            odd |= m.gap_up_max > sweep.allowed
        if ratio is not None:
            odd |= m.err_cand_max > RATIO_MAX * max(ratio.err_ref_max, ratio.floor_max)
        if bool(odd.any()):
            return (
                f"{label}: first at position {int(m.position[odd.nonzero()[0, 0]])}, {int(odd.sum())} "
                f"of {len(m)} positions stand out"
            )
    return None


def _numbers(rows: list[Measured]) -> dict[str, Any]:
    names = (
        "kl_mean",
        "kl_max",
        "kl_p999",
        "kl_p99",
        "kl_p95",
        "kl_p50",
        "dp_rms",
        "top1_agreement",
        "top1_stderr",
    )
    if not rows:
        return dict.fromkeys(names)
    kl = torch.cat([m.kl for m in rows])
    dp = torch.cat([m.dp for m in rows])
    dp = dp[~torch.isnan(dp)]
    same = torch.cat([m.top1_ref == m.top1_cand for m in rows]).double()
    share = float(same.mean())
    points = [float(torch.quantile(kl, q)) for q in (0.999, 0.99, 0.95, 0.5)]
    values = [
        float(kl.mean()),
        float(kl.max()),
        *points,
        float(dp.square().mean().sqrt()) if len(dp) else None,
    ]
    return dict(zip(names, [*values, share, (share * (1 - share) / len(same)) ** 0.5], strict=True))


def _case_row(label: str, m: Measured, ratio: Ratio | None) -> dict[str, Any]:
    floor = ratio.floor_max if ratio else 0.0
    return {
        "case": label,
        "positions": len(m),
        "ratio_max": _finite(float(m.err_cand_max.max()) / max(float(m.err_ref_max.max()), floor, 1e-300)),
        "gap_up_max": _finite(float(m.gap_up_max.max())),
        "kl_max": _finite(float(m.kl.max())),
        "flips": int((m.top1_ref != m.top1_cand).sum()),
        "router_ties": int(m.router_tie.sum()),
    }


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def _table(labels: list[str], rows: list[Measured]) -> dict[str, list[Any]]:
    columns = (
        "position",
        "kl",
        "err_ref_max",
        "err_cand_max",
        "gap_up_max",
        "top1_ref",
        "top1_cand",
        "margin",
        "dp",
        "router_tie",
    )
    table: dict[str, list[Any]] = {
        "case": [label for label, m in zip(labels, rows, strict=True) for _ in range(len(m))]
    }
    for name in columns:
        table[name] = [value for m in rows for value in getattr(m, name).tolist()]
    return table
