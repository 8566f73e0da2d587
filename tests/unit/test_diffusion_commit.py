"""Commit rules against their definitions, one row at a time, and the laws that all of them keep."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from twinrun.errors import ConfigError

RULES = [
    tr.Quota(), tr.Quota(1), tr.Quota(3), tr.Quota(40), tr.Threshold(), tr.Threshold(0.0), tr.Threshold(1.0),
    tr.Factor(), tr.Factor(0.0), tr.Factor(3.5),
]  # fmt: skip


def by_definition(rule: object, row: list[float], is_open: list[bool], step: int, size: int) -> set[int]:
    """What a rule chooses in one row, written from its words: sort by confidence, take the first ones."""
    order = sorted((i for i, o in enumerate(is_open) if o), key=lambda i: (-row[i], i))
    if not order:
        return set()
    if isinstance(rule, tr.Quota):
        steps = rule.steps or size
        count = max(1, size // steps + (1 if step < size % steps else 0))
    elif isinstance(rule, tr.Threshold):
        count = max(1, sum(row[i] >= rule.p for i in order))
    else:
        fits = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - row[order[n - 1]]) < rule.f]
        count = max(fits, default=1)
    return set(order[:count])


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(4, 12, generator=generator, dtype=torch.float64)
    confidence[1] = (confidence[1] * 3).round() / 3  # ties
    confidence[2] = 1 - confidence[2] * 0.1  # sure
    return confidence, torch.rand(4, 12, generator=generator) < torch.tensor([[0.5], [0.8], [0.9], [0.0]])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_chooses_what_its_definition_says(rule):
    for seed in range(40):
        confidence, is_open = random_case(seed)
        confidence = confidence.masked_fill(~is_open, torch.nan)
        for step in (0, 1, 5):
            got = rule.choose(confidence, is_open, step=step, size=12)
            for i in range(4):
                want = by_definition(rule, confidence[i].tolist(), is_open[i].tolist(), step, 12)
                assert set(got[i].nonzero()[:, 0].tolist()) == want


def test_the_published_off_by_one_is_not_ours():
    def published(row: list[float], f: float) -> int:
        order = sorted(row, reverse=True)
        bounds = [-1.0, *(1 - f / (n + 1) for n in range(2, len(order) + 1))]
        fails = [n for n, (c, b) in enumerate(zip(order, bounds, strict=True)) if c < b]
        return fails[0] if fails and fails[0] < len(order) - 1 else len(order)

    row = [0.99, 0.99, 0.99, 0.2]
    chosen = tr.Factor(1.0).choose(torch.tensor([row]), torch.ones(1, 4, dtype=torch.bool), step=0, size=4)
    assert chosen.tolist() == [[True, True, True, False]]
    assert published(row, 1.0) == 4, "the control: the published rule takes the last one too"


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_open_row_moves_and_closed_ones_stay(rule):
    for seed in range(20):
        confidence, is_open = random_case(seed)
        chosen = rule.choose(confidence, is_open, step=11, size=12)
        assert not bool((chosen & ~is_open).any())
        assert torch.equal(chosen.any(1), is_open.any(1))


def test_quota_spreads_the_rest_over_the_first_steps():
    assert [tr.Quota(5).count(i, 32) for i in range(5)] == [7, 7, 6, 6, 6]
    assert [tr.Quota(1).count(0, 32), tr.Quota().count(3, 32), tr.Quota(64).count(31, 32)] == [32, 1, 1]


def test_the_threshold_itself_is_enough():
    both = torch.ones(1, 2, dtype=torch.bool)
    at = torch.tensor([[0.9, 0.95]], dtype=torch.float64)
    assert tr.Threshold(0.9).choose(at, both, step=0, size=2).all()
    under = torch.tensor([[0.9 - 1e-15, 0.95]], dtype=torch.float64)
    assert tr.Threshold(0.9).choose(under, both, step=0, size=2).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tr.Quota(0), r"Quota\(steps=0\)"),
        (lambda: tr.Threshold(1.01), r"Threshold\(p=1.01\)"),
        (lambda: tr.Threshold(-0.1), r"\[0, 1\]"),
        (lambda: tr.Threshold(float("nan")), "nan"),
        (lambda: tr.Factor(-1.0), r"Factor\(f=-1.0\)"),
        (lambda: tr.Factor(float("inf")), "inf"),
    ],
)
def test_values_outside_the_range_are_refused_in_one_line(make, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)
