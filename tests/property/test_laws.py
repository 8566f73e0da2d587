"""Laws that hold for every input, searched by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twinrun.numerics.blocks import StoredLogits
from twinrun.numerics.divergence import kl_divergence
from twinrun.runners.forward import Padded
from twinrun.runners.sampling import Sampling, choose
from twinrun.runners.score import length_batches

logit_rows = st.integers(1, 9).flatmap(
    lambda vocab: st.lists(
        st.lists(st.floats(-30, 30, width=32), min_size=vocab, max_size=vocab), min_size=1, max_size=5
    )
)
token_rows = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=6)


@given(logit_rows, st.floats(-20, 20))
def test_kl_of_a_side_with_itself_is_zero_and_shifts_do_not_matter(
    rows: list[list[float]], shift: float
) -> None:
    x = torch.tensor(rows)
    kl = kl_divergence(StoredLogits(x), StoredLogits(x + shift)).kl
    assert float(kl.abs().max()) < 1e-4


@given(logit_rows, st.integers(1, 400))
def test_the_block_size_changes_no_bit(rows: list[list[float]], block_bytes: int) -> None:
    p, q = torch.tensor(rows), torch.tensor(rows).flip(1)
    whole = kl_divergence(StoredLogits(p), StoredLogits(q)).kl
    assert torch.equal(kl_divergence(StoredLogits(p), StoredLogits(q), block_bytes).kl, whole)


@given(token_rows)
@example([[0], [1, 2, 3]])
def test_left_padding_keeps_every_token_and_its_position(rows: list[list[int]]) -> None:
    batch = Padded.of(rows, 0, torch.device("cpu"))
    for i, row in enumerate(rows):
        assert batch.ids[i, -len(row) :].tolist() == row
        assert batch.positions[i, -len(row) :].tolist() == list(range(len(row)))
        if batch.mask is not None:
            assert int(batch.mask[i].sum()) == len(row)
    assert (batch.mask is None) == (len(set(map(len, rows))) == 1)


@given(token_rows, st.integers(1, 4))
def test_batches_hold_every_row_exactly_once(rows: list[list[int]], batch_size: int) -> None:
    found = [i for chunk in length_batches(rows, batch_size) for i in chunk]
    assert sorted(found) == list(range(len(rows)))


@given(
    st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=20),
    st.integers(0, 5),
    st.floats(0.05, 1.0),
    st.integers(0, 2**20),
)
@example([0.0, 0.0], 0, 1.0, 0)
def test_a_draw_stays_inside_top_k_and_top_p(row: list[float], top_k: int, top_p: float, seed: int) -> None:
    logits = torch.tensor(row)
    settings = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, seed=seed)
    token, _ = choose(logits, settings, settings.generators(1)[0])
    probs = torch.softmax(logits.double(), 0)
    better = probs[probs > probs[token] * (1 + 1e-5)]  # float32 rounding makes ties of nearer ones
    if top_k:
        assert len(better) < top_k
        probs = probs.sort(descending=True).values[:top_k]
    assert float(better.sum()) < top_p * float(probs.sum()) + 1e-9


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=20), st.integers(0, 2**20))
def test_the_same_seed_draws_the_same_token(row: list[float], seed: int) -> None:
    settings = Sampling(temperature=0.7, seed=seed)
    draws = {choose(torch.tensor(row), settings, settings.generators(1)[0])[0] for _ in range(3)}
    assert len(draws) == 1


def test_samples_follow_the_distribution() -> None:
    """20,000 draws: every count within 4.5 standard deviations; a distribution 5 % off is refused."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(1)
    settings = Sampling(temperature=1.0)
    counts = torch.zeros(4)
    for _ in range(20_000):
        counts[choose(logits, settings, generator)[0]] += 1
    probs = torch.softmax(logits.double(), 0)

    def worst(p: torch.Tensor) -> float:
        return float(((counts - 20_000 * p).abs() / (20_000 * p * (1 - p)).sqrt()).max())

    assert worst(probs) < 4.5
    assert worst(torch.softmax(logits.double() * 1.1, 0)) > 4.5
