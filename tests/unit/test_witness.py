"""The rules of both witnesses on numbers made by hand."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from twinrun.verify.evidence import Evidence
from twinrun.verify.judge import judge
from twinrun.verify.measure import Measured
from twinrun.verify.witness import ratio_witness, sweep_witness


def measured(n: int, *, ref: float = 1.0, cand: float = 1.0, gap: float = 0.0, tie: bool = False) -> Measured:
    """Rows whose errors are the same at every position, over a vocabulary of 10."""
    values: dict[str, Any] = {f.name: torch.zeros(n, dtype=torch.float64) for f in fields(Measured)}
    values |= {
        "position": torch.arange(n),
        "err_ref_max": torch.full((n,), ref),
        "err_ref_ss": torch.full((n,), 10 * ref**2),
        "err_cand_max": torch.full((n,), cand),
        "err_cand_ss": torch.full((n,), 10 * cand**2),
        "gap_up_max": torch.full((n,), gap),
        "top1_ref": torch.zeros(n, dtype=torch.long),
        "top1_cand": torch.zeros(n, dtype=torch.long),
        "logit_size": torch.ones(n),
        "same_bits": torch.zeros(n, dtype=torch.bool),
        "ref_finite": torch.ones(n, dtype=torch.bool),
        "cand_finite": torch.ones(n, dtype=torch.bool),
        "router_tie": torch.full((n,), tie),
        "vocab": 10,
    }
    return Measured(**values)


@pytest.mark.parametrize(
    ("n", "cand", "passes"), [(10_000, 1.45, True), (10_000, 1.7, False), (30, 1.7, True), (30, 4.0, False)]
)
def test_limits_widen_over_few_positions(n: int, cand: float, passes: bool) -> None:
    ratio = ratio_witness([measured(n, cand=cand)], torch.float32)
    assert ratio.passes is passes
    assert ratio.rms == pytest.approx(cand)


def test_one_row_far_off_convicts_among_many() -> None:
    """The worst error is a maximum: a single position 5 times off is enough."""
    rows = [measured(2000), measured(1, cand=5.0)]
    assert not ratio_witness(rows, torch.float32).passes


def test_a_reference_that_is_exact_by_luck_accuses_nobody() -> None:
    """One ulp of float32 at logits of size 1 is 1.2e-7: an error below it is rounding."""
    assert ratio_witness([measured(500, ref=1e-12, cand=1e-7)], torch.float32).passes
    assert not ratio_witness([measured(500, ref=1e-12, cand=2e-5)], torch.float32).passes


@pytest.mark.parametrize(("gap", "passes"), [(1e-6, True), (3e-4, True), (2e-3, False)])
def test_the_sweep_allows_what_rounding_explains(gap: float, passes: bool) -> None:
    """bfloat16 to float32 shrinks 65,536 times: an error of 1/3 explains 64 / 65,536 / 3 = 3.3e-4."""
    sweep = sweep_witness([measured(9, ref=1 / 3, gap=gap)], torch.bfloat16, torch.float32)
    assert sweep.allowed == pytest.approx(64 / 3 / 65536)
    assert sweep.passes is passes


def test_router_ties_are_set_aside_and_counted() -> None:
    ratio = ratio_witness([measured(50), measured(7, cand=23.0, tie=True)], torch.bfloat16)
    assert ratio.passes
    assert ratio.set_aside == 7


def test_without_any_witness_nothing_is_proved() -> None:
    evidence = Evidence(rows=[measured(9, tie=True)], labels=["a"], why_no_sweep="it was switched off")
    verdict = judge(evidence, "reference", "candidate", None, torch.bfloat16, torch.float32)
    assert verdict.verdict == "different"
    assert "no witness could be heard" in verdict.reason
    evidence.why_no_sweep = None
    assert (
        judge(evidence, "reference", "candidate", None, torch.bfloat16, torch.float32).verdict == "equivalent"
    )
