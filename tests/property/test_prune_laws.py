"""Laws of schedule and choice, whatever the numbers: against a choice written out as a sort in Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinrun.prune.choice import choose
from twinrun.prune.protection import Protection
from twinrun.prune.schedule import Schedule

RATIOS = st.floats(0.01, 1.0, exclude_min=True)
PROTECTIONS = st.builds(
    Protection, first=st.integers(0, 8), last=st.one_of(st.floats(0, 1), st.integers(0, 12))
)


@st.composite
def schedules(draw: Any) -> Schedule:
    layers = sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=6)))
    keeps = sorted((draw(RATIOS) for _ in layers), reverse=True)
    return Schedule.of(dict(zip(layers, keeps, strict=True)))


@given(schedule=schedules(), length=st.integers(1, 300), protection=PROTECTIONS)
def test_a_schedule_falls_never_below_what_is_protected_or_one(
    schedule: Schedule, length: int, protection: Protection
) -> None:
    kept = schedule.kept(length, protection)
    assert list(kept) == sorted(kept, reverse=True)
    assert all(max(1, protection.tokens(length)) <= n <= length for n in kept)
    for stage, n in zip(schedule.stages, kept, strict=True):
        assert n >= math.floor(stage.keep * length)
    lengths = schedule.lengths(31, length, protection)
    assert lengths[0] == length
    assert [lengths[layer] for layer in schedule.layers] == list(kept)
    mean = schedule.mean_keep(31, length, protection)
    squared = schedule.mean_keep_squared(31, length, protection)
    assert mean * mean - 1e-9 <= squared <= mean <= 1


@given(schedule=schedules(), length=st.integers(1, 300), protection=PROTECTIONS)
def test_a_longer_prompt_keeps_as_many_and_at_most_one_more(
    schedule: Schedule, length: int, protection: Protection
) -> None:
    """So a shorter row always has the padding that fills it up to the longest."""
    pairs = zip(schedule.kept(length, protection), schedule.kept(length + 1, protection), strict=True)
    assert all(before <= after <= before + 1 for before, after in pairs)


@given(ratio=st.floats(0.3, 1.0), depth=st.integers(5, 80))
def test_the_papers_schedule_is_powers_of_its_ratio(ratio: float, depth: int) -> None:
    found = Schedule.geometric(depth, ratio)
    assert found.layers == tuple(range(4, depth, 3))
    assert [s.keep for s in found.stages] == pytest.approx(
        [ratio**i for i in range(1, len(found.stages) + 1)]
    )


def slowly(scores: list[float], keep: int, protection: Protection) -> list[int]:
    """Positions kept: protected, then by score, then the newest; in order."""
    length = len(scores)
    late = length - protection.last_tokens(length)

    def rank(i: int) -> tuple[bool, float, int]:
        return (i < protection.first or i >= late, -math.inf if math.isnan(scores[i]) else scores[i], i)

    return sorted(sorted(range(length), key=rank, reverse=True)[:keep])


SCORES = st.lists(
    st.one_of(st.floats(-5, 5, width=32), st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])),
    min_size=1,
    max_size=24,
)


@given(rows=st.lists(SCORES, min_size=1, max_size=4), ratio=RATIOS, protection=PROTECTIONS)
def test_the_choice_is_that_of_a_sort_in_every_row(
    rows: list[list[float]], ratio: float, protection: Protection
) -> None:
    width = max(map(len, rows))
    lengths = [len(row) for row in rows]
    keep = [Schedule.of({1: ratio}).kept(n, protection)[0] for n in lengths]
    # Scores of padding must not matter: the best there are.
    scores = torch.tensor([[math.inf] * (width - len(row)) + row for row in rows])
    positions = torch.tensor([[-1] * (width - len(row)) + list(range(len(row))) for row in rows])
    at = choose(scores, positions, lengths, keep, protection)
    assert at.shape == (len(rows), max(keep))
    for row, number in enumerate(keep):
        assert at[row].tolist() == sorted(set(at[row].tolist()))
        real = [int(positions[row, i]) for i in at[row] if positions[row, i] >= 0]
        assert real == slowly(rows[row], number, protection)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, math.nan, math.inf])
def test_constant_scores_keep_the_newest(value: float) -> None:
    at = choose(torch.full((1, 30), value), torch.arange(30)[None], [30], [10], Protection(first=2, last=1))
    assert at[0].tolist() == [0, 1, *range(22, 30)]


def test_a_topk_would_break_ties_otherwise() -> None:
    """The control: torch's topk gives no such promise."""
    picked = torch.zeros(1, 30).topk(10, dim=1).indices.sort().values[0].tolist()
    assert picked != [0, 1, *range(22, 30)]
