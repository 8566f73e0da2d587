"""Judge the text that both sides of a trace share, so that its first divergence has numbers."""

from __future__ import annotations

from typing import Any

import torch

from twinrun.numerics.fingerprint import one_minus_cosine
from twinrun.records.tokens import first_difference
from twinrun.trace.divergence import Numbers, first_divergence
from twinrun.trace.record import Trace
from twinrun.verify.activations import By
from twinrun.verify.blame import blame
from twinrun.verify.case import Case
from twinrun.verify.noise import layer_noise
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify
from twinrun.verify.witness import RATIO_MAX


def analyse(found: Trace, reference: Any, candidate: Any, by: By | None) -> None:
    """Fill in curves, verdict, first divergence and blame."""
    found.curves = curves(found)
    case = common_case(found)
    if by is None or case is None:
        found.first_divergence = first_divergence(found.reference, found.candidate, {}, None)
        return
    verdict = verify(reference, candidate, [case], explain=False)
    found.verdict = verdict
    numbers, noise = measured(verdict)
    found.first_divergence = first_divergence(found.reference, found.candidate, numbers, noise)
    if not verdict.passed:
        found.blame = blame(reference, candidate, [case], by=by)
    if found.curves is not None:
        found.curves["noise"] = layer_noise(reference, case, len(found.curves["layers"]))


def common_case(found: Trace) -> Case | None:
    """Prompt and the continuation that both sides share, as one case; None if the prompts differ."""
    if found.reference.prompt != found.candidate.prompt:
        return None
    ours, theirs = found.reference.tokens, found.candidate.tokens
    shared = ours[: first_difference(ours, theirs)]
    prompt = tuple(found.reference.prompt)
    return Case(label="common text", rows=((*prompt, *shared),), starts=(len(prompt),))


def measured(verdict: Verdict) -> tuple[dict[int, Numbers], float | None]:
    """Numbers of each position, and the reference's own worst error (at least the floor)."""
    table, ratio, sweep = verdict.table, verdict.ratio, verdict.sweep
    if ratio is None:
        return {}, None
    noise = max(ratio.err_ref_max, ratio.floor_max)
    columns = zip(table["position"], table["margin"], table["err_cand_max"], table["gap_up_max"], strict=True)
    found = {}
    for position, margin, error, gap in columns:
        beyond = sweep.allowed is not None and not gap <= sweep.allowed
        found[position] = Numbers(
            margin=margin,
            error=error,
            gap_up=None if sweep.gap is None else gap,
            stands_out=not verdict.passed and (beyond or error > RATIO_MAX * noise),
        )
    return found, noise


def curves(found: Trace) -> dict[str, Any] | None:
    """Relative difference and cosine of the two sides' hidden states at each scored position that both have."""
    ours, theirs = found.reference.by_position(), found.candidate.by_position()
    positions, errors, cosines = [], [], []
    for position, (step, row) in ours.items():
        if position not in theirs:
            break
        other, their_row = theirs[position]
        if step.hidden is None or other.hidden is None or step.hidden.shape[1:] != other.hidden.shape[1:]:
            return None
        a = other.hidden[_row(other, their_row)]
        b = step.hidden[_row(step, row)]
        length = b[:, -1].clamp_min(1e-300)
        positions.append(position)
        errors.append(
            [_short(x) for x in ((a[:, :-1] - b[:, :-1]).square().sum(-1).sqrt() / length).tolist()]
        )
        cosines.append([_short(1 - x) for x in one_minus_cosine(a, b).tolist()])
        if row.token != their_row.token:
            break
    if not positions:
        return None
    layers = ["embedding", *(str(i) for i in range(len(errors[0]) - 1))]
    return {
        "positions": positions,
        "layers": layers,
        "error": errors,
        "cosine": cosines,
        "noise": [None] * len(layers),
    }


def _row(step: Any, row: Any) -> int:
    """Place of a scored row among the fingerprints of its step, counted from the end."""
    assert step.hidden is not None
    place = step.rows.index(row) - len(step.rows)
    return int(place)


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if torch.isfinite(torch.tensor(value)) else None
