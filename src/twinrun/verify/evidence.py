"""What the passes over all cases leave behind: measured rows, and findings that convict without any number."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from twinrun.records.scores import Scores
from twinrun.verify.align import misalignment
from twinrun.verify.case import Case
from twinrun.verify.measure import Measured, measure
from twinrun.verify.routing import router_ties


def _no_seconds() -> dict[str, float]:
    return {"reference": 0.0, "candidate": 0.0, "oracle": 0.0, "candidate_up": 0.0}


@dataclass(slots=True)
class Evidence:
    """Filled case by case, then read once by the judge."""

    rows: list[Measured] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """Misalignments, NaN, moved rows, in words; any convicts."""
    seconds: dict[str, float] = field(default_factory=_no_seconds)
    paths: dict[str, str] = field(default_factory=dict)
    why_no_sweep: str | None = None
    awaited: set[str] = field(default_factory=set)
    """Labels of cases that a later case must agree with; their scores are kept until then."""
    _kept: dict[str, Scores] = field(default_factory=dict)

    def add(
        self,
        case: Case,
        reference: list[Scores],
        candidate: list[Scores],
        oracle: list[Scores],
        candidate_up: list[Scores] | None,
    ) -> None:
        """Align and measure every row of one case."""
        ups: list[Scores] | list[None] = candidate_up or [None] * len(oracle)
        with torch.inference_mode():
            for i, (ref, cand, truth, up) in enumerate(zip(reference, candidate, oracle, ups, strict=True)):
                label = case.label if len(case.rows) == 1 else f"{case.label}, row {i}"
                problem = misalignment(ref, cand) or (misalignment(ref, up) if up else None)
                if problem is not None:
                    self.findings.append(f"{label}: {problem}")
                    continue
                measured = measure(ref, cand, truth, up, router_ties(ref, cand, truth))
                self.rows.append(measured)
                self.labels.append(label)
                self._find_nan(label, measured)
                self._find_moved(case, label, cand, measured)
        if case.label in self.awaited:
            self._kept[case.label] = candidate[0]

    def _find_nan(self, label: str, measured: Measured) -> None:
        if not bool(measured.cand_finite.all()):
            at = int(measured.position[(~measured.cand_finite).nonzero()[0, 0]])
            self.findings.append(f"{label}: the candidate gives NaN at position {at}")

    def _find_moved(self, case: Case, label: str, cand: Scores, measured: Measured) -> None:
        """Check that rows before a changed token moved by no more than the reference's own rounding."""
        if case.same_before is None or case.same_before[0] not in self._kept:
            return
        name, position = case.same_before
        keep = int((cand.positions < position).sum())
        before = torch.log_softmax(self._kept[name].logits.rows(0, keep).double(), dim=-1)
        after = torch.log_softmax(cand.logits.rows(0, keep).double(), dim=-1)
        moved = (before - after).abs().amax(-1)
        noise = 2 * float(measured.err_ref_max.max())
        if bool((moved > noise).any()):
            at = int(cand.positions[int((moved > noise).nonzero()[0])])
            self.findings.append(
                f"{label}: changing the token at position {position} moved position {at} by "
                f"{float(moved.max()):.3g} nats (rounding explains {noise:.3g}); the candidate sees the future"
            )
