"""Loss terms against double loops in float64, and their edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.prune_oracles import as_floats, plain_mse, plain_ranking, plain_ranks
from twinrun.errors import ConfigError
from twinrun.prune.losses import draw_pairs, keep_value, mse_loss, normalised, ranking_loss
from twinrun.prune.objective import seeded


def numbers(rows: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, tokens, generator=g, dtype=torch.float64)
    targets = torch.randint(0, 6, (rows, tokens), generator=g).double()
    return scores, targets, torch.rand(rows, tokens, generator=g) < 0.7


def generators(rows: int) -> list[torch.Generator]:
    return [seeded("test", row) for row in range(rows)]


def test_each_row_is_what_two_loops_say() -> None:
    scores, targets, use = numbers(5, 23)
    use[4] = False
    pairs = draw_pairs(use, 10**6, generators(5))
    mse, rank = mse_loss(scores, targets, use), ranking_loss(scores, targets, use, pairs)
    for row in range(4):
        own = as_floats(scores[row][use[row]]), as_floats(targets[row][use[row]])
        assert float(mse[row]) == pytest.approx(plain_mse(*own), rel=1e-12)
        assert float(rank[row]) == pytest.approx(plain_ranking(*own), rel=1e-12)
        assert float(rank[row]) != pytest.approx(plain_ranking(own[0], own[1][::-1]), rel=1e-3)  # the control
    assert float(mse[4]) == float(rank[4]) == 0.0


@given(
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.integers(0, 3)), min_size=2, max_size=9),
    st.floats(-100, 100),
)
def test_ranking_sees_differences_and_order_only(rows: list[tuple[float, int]], shift: float) -> None:
    scores = torch.tensor([[s for s, _ in rows]], dtype=torch.float64)
    targets = torch.tensor([[float(t) for _, t in rows]], dtype=torch.float64)
    use = torch.ones_like(targets, dtype=torch.bool)
    pairs = draw_pairs(use, 1000, generators(1))
    found = ranking_loss(scores, targets, use, pairs)
    want = plain_ranking(as_floats(scores[0]), as_floats(targets[0]))
    torch.testing.assert_close(float(found), want, rtol=1e-9, atol=1e-12)
    moved = ranking_loss(scores + shift, targets.exp(), use, pairs)
    torch.testing.assert_close(moved, found, rtol=1e-9, atol=1e-9)


def test_ranking_neither_overflows_nor_vanishes() -> None:
    targets, use = torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)
    pairs = draw_pairs(use, 9, generators(1))
    wrong = torch.tensor([[5000.0, -5000.0]], requires_grad=True)
    loss = ranking_loss(wrong, targets, use, pairs)
    (gradient,) = torch.autograd.grad(loss.sum(), wrong)
    assert float(loss) == 10_000.0
    assert gradient.tolist() == [[1.0, -1.0]]
    naive = torch.log(
        1 + torch.exp(wrong[0, 0] - wrong[0, 1])
    )  # the control: the paper's formula as it stands
    assert torch.isinf(naive)
    assert float(ranking_loss(-wrong, targets, use, pairs)) == 0.0


def test_sampled_pairs_are_drawn_from_the_tokens_in_use_and_estimate_the_mean() -> None:
    scores, targets, use = numbers(2, 400, seed=3)
    use[1, 7:] = False
    drawn = draw_pairs(use, 5000, generators(2))
    assert drawn.shape == (2, 5000, 2)
    assert bool(use[0][drawn[0]].all())
    assert bool((drawn[0][:, 0] != drawn[0][:, 1]).all())
    assert torch.equal(drawn, draw_pairs(use, 5000, generators(2)))
    own = as_floats(scores[0][use[0]]), as_floats(targets[0][use[0]])
    found = ranking_loss(scores, targets, use, drawn)
    assert float(found[0]) == pytest.approx(plain_ranking(*own), rel=0.03)
    few = as_floats(scores[1][use[1]]), as_floats(targets[1][use[1]])
    assert float(found[1]) == pytest.approx(plain_ranking(*few), rel=1e-12)  # the filling counts for nothing


def test_rank_targets_are_ranks_with_variance_one() -> None:
    values = torch.tensor([[3.0, 1e9, 3.0, 2.0, -7.0, 0.0]])
    use = torch.tensor([[True, True, True, True, True, False]])
    found = normalised(values, use, "rank")[0]
    ranks = torch.tensor(plain_ranks([3.0, 1e9, 3.0, 2.0, -7.0]))
    torch.testing.assert_close(found[:5], ((ranks / 4 * 2 - 1) * 3**0.5).float())
    assert found[5] == 0.0
    many = normalised(
        torch.randn(1, 999, generator=generators(1)[0]), torch.ones(1, 999, dtype=torch.bool), "rank"
    )
    assert float(many.mean()) == pytest.approx(0, abs=1e-5)
    assert float(many.var()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("scale", ["rank", "log", "standard"])
def test_targets_do_not_hang_on_the_size_of_a_samples_gradient(scale: str) -> None:
    values, _, use = numbers(2, 30)
    small = normalised(values.abs() * 1e-12, use, scale)
    torch.testing.assert_close(small, normalised(values.abs(), use, scale), rtol=1e-4, atol=1e-4)
    same = normalised(torch.full((1, 5), 2.0), torch.ones(1, 5, dtype=torch.bool), scale)
    assert same.tolist() == [[0.0] * 5]


def test_signs_and_unknown_words() -> None:
    values = torch.tensor([-2.0, 1.0])
    assert keep_value(values, output="loss", sign="abs").tolist() == [2.0, 1.0]
    assert keep_value(values, output="loss", sign="signed").tolist() == [2.0, -1.0]
    assert keep_value(values, output="logit", sign="signed").tolist() == [-2.0, 1.0]
    with pytest.raises(ConfigError, match="unknown sign 'absolute'"):
        keep_value(values, output="loss", sign="absolute")
    with pytest.raises(ConfigError, match="unknown scale 'z'"):
        normalised(values[None], torch.ones(1, 2, dtype=torch.bool), "z")
