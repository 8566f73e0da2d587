"""Steps and labels against loops in float64: what is kept, the weights, unequal vocabularies, rows that are broken."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.plain_select import plain_select, softmax
from twinrun.bench.memory import peak_extra_bytes
from twinrun.contrast.select import Selected, select
from twinrun.errors import ConfigError, ShapeError
from twinrun.numerics.blocks import StoredLogits

TOLERANCE = 2e-5
"""Float32 softmax of logits of size 30 against float64; 3 times the worst of the seeds below."""


def logits(rows: int, vocab: int, seed: int, size: float = 4.0) -> torch.Tensor:
    return size * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def both(e: torch.Tensor, a: torch.Tensor, **settings: float) -> Selected:
    return select(StoredLogits(e), StoredLogits(a), **settings)


def assert_same(
    found: Selected, e: torch.Tensor, a: torch.Tensor, beta: float, alpha: float, off: float = TOLERANCE
) -> None:
    values, labels = plain_select(e.double().tolist(), a.double().tolist(), beta, alpha)
    assert found.kl == pytest.approx(values, rel=off, abs=off)
    assert [label.step for label in found.labels] == list(labels)
    for label in found.labels:
        assert dict(zip(label.token_ids, label.weights, strict=True)) == pytest.approx(
            labels[label.step], abs=off
        )
        assert label.kl == found.kl[label.step]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.2, 0.01, 1.0])
@pytest.mark.parametrize(
    ("widths", "dtype"),
    [((37, 37), torch.float32), ((41, 33), torch.float32), ((37, 37), torch.bfloat16)],
)
def test_steps_and_weights_are_those_of_the_loops(seed, alpha, widths, dtype):
    e, a = (logits(23, w, seed + 10 * i).to(dtype) for i, w in enumerate(widths))
    a = torch.where(torch.arange(23)[:, None] % 2 == 0, e[:, : widths[1]] + 0.1 * a, a)  # some rows are alike
    found = both(e, a, beta=0.4, alpha=alpha)
    assert 0 < len(found.labels) < 23
    assert_same(found, e, a, 0.4, alpha)


def test_the_loops_refuse_other_numbers():
    e, a = logits(9, 20, 1), logits(9, 20, 2)
    right = both(e, a)
    with pytest.raises(AssertionError):
        assert_same(both(e * 1.001, a), e, a, 0.4, 0.2)
    with pytest.raises(AssertionError):
        assert_same(both(e, a, alpha=0.5), e, a, 0.4, 0.2)
    with pytest.raises(AssertionError):
        assert_same(both(a, e), e, a, 0.4, 0.2)
    assert_same(right, e, a, 0.4, 0.2)


def test_weights_stand_in_descending_order_and_equal_ones_by_id():
    e, a = torch.tensor([[2.0, 2.0, 1.5, 2.0, -50.0]]), torch.tensor([[1.0, -1.0, 0.0, 1.0, 60.0]])
    label = both(e, a).labels[0]
    assert label.token_ids == (1, 2, 0, 3)
    assert label.weights[2] == label.weights[3]
    assert math.fsum(label.weights) == pytest.approx(1, abs=1e-6)


def test_no_block_size_changes_a_bit():
    e, a = logits(40, 50, 3), logits(40, 50, 4)
    whole = both(e, a)
    for size in (1, 200, 1000, 5000):
        assert select(StoredLogits(e), StoredLogits(a), block_bytes=size) == whole


def test_mass_beyond_the_shorter_vocabulary_is_reported():
    e, a = logits(3, 20, 5), logits(3, 16, 6)
    found = both(e, a)
    lost = [math.fsum(softmax(row)[16:]) for row in e.double().tolist()]
    assert found.shared_vocab == 16
    assert found.dropped_mass == pytest.approx(max(lost), rel=1e-5)
    assert both(a, e).dropped_mass == found.dropped_mass
    assert both(a, a).dropped_mass == 0


def test_a_small_epsilon_would_change_what_is_said():
    """The public code adds 1e-12 to both sides; where the amateur gives less, the ratio is not the models' own."""
    e, a = torch.tensor([[0.0, -0.5, -90.0]]), torch.tensor([[-50.0, -60.0, 0.0]])
    right = both(e, a).labels[0]
    saturated = softmax([math.log(p) - math.log(1e-12) for p in softmax([0.0, -0.5])])
    assert right.weights[0] > 0.9999
    assert max(saturated) < 0.63


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_rows_are_named_and_never_kept(value):
    e, a = logits(4, 12, 7), logits(4, 12, 8)
    (e if value != -float("inf") else a)[2, 5] = value
    if value == -float("inf"):
        e[2, 5] = 20.0  # the expert is sure of what the amateur rules out
    found = both(e, a)
    assert found.broken == 2
    assert 2 not in [label.step for label in found.labels]
    assert both(logits(4, 12, 7), logits(4, 12, 8)).broken is None


def test_a_row_at_beta_is_not_kept():
    e, a = logits(1, 12, 9), logits(1, 12, 10)
    kl = both(e, a).kl[0]
    assert both(e, a, beta=kl).labels == ()
    assert len(both(e, a, beta=kl - 1e-3).labels) == 1


def test_bad_requests_are_refused():
    e = StoredLogits(logits(2, 5, 0))
    with pytest.raises(ConfigError, match="beta must be at least 0"):
        select(e, e, beta=-1)
    with pytest.raises(ConfigError, match="beta"):
        select(e, e, beta=float("nan"))
    for alpha in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="alpha must be in"):
            select(e, e, alpha=alpha)
    with pytest.raises(ShapeError, match="2 rows and the amateur 3"):
        select(e, StoredLogits(logits(3, 5, 0)))
    assert select(StoredLogits(torch.empty(0, 5)), StoredLogits(torch.empty(0, 5))).labels == ()


class Heads:
    """Rows that are made when asked for, as from a head."""

    def __init__(self, rows: int, vocab: int, seed: int) -> None:
        self.num_rows, self.vocab_size, self._seed = rows, vocab, seed

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return logits(stop - start, self.vocab_size, self._seed + start)


def test_the_whole_table_never_exists():
    e, a = Heads(2000, 5000, 0), Heads(2000, 5000, 1)
    whole = 2000 * 5000 * 4
    streamed = peak_extra_bytes(lambda: select(e, a, block_bytes=40_000))
    assert streamed < whole / 20  # one call of both heads, and not the one before it
    table = peak_extra_bytes(lambda: both(e.rows(0, 2000), a.rows(0, 2000)))
    assert table > whole  # the control: the measure sees the tables where there are some
