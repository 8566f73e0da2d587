"""Streamed numbers against plain float64 formulas that share no code with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twinrun.errors import ConfigError, ShapeError
from twinrun.numerics.blocks import StoredLogits, block_bounds, log_softmax
from twinrun.numerics.divergence import kl_divergence, token_stats
from twinrun.numerics.precision import dtype_name, one_up, parse_dtype, ulp

# Worst error of 20 seeds, 2026-11, one thread: KL 3.1e-7, log-probability 1.0e-6, entropy 9.6e-7 nats. Doubled.
TOLERANCE = {"kl": 6.2e-7, "logprob": 2.0e-6, "entropy": 2.0e-6}
SHAPES = [(1, 1), (1, 7), (7, 41), (53, 320), (129, 1009)]


def logits_of(rows: int, vocab: int, seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def plain_log_softmax(x: Tensor) -> Tensor:
    x = x.double()
    top = x.max(1, keepdim=True).values
    return x - top - (x - top).exp().sum(1, keepdim=True).log()


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    a, b = plain_log_softmax(p), plain_log_softmax(q)
    return (a.exp() * (a - b)).sum(1)


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
@pytest.mark.parametrize("block_bytes", [1, 4 * 41 * 3, 1 << 24])
def test_streamed_kl_equals_float64_whatever_the_block(rows: int, vocab: int, block_bytes: int) -> None:
    p, q = logits_of(rows, vocab, 1), logits_of(rows, vocab, 2)
    got = kl_divergence(StoredLogits(p), StoredLogits(q), block_bytes).kl.double()
    torch.testing.assert_close(got, plain_kl(p, q), rtol=1e-5, atol=TOLERANCE["kl"])
    if vocab > 1:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(got * 1.02, plain_kl(p, q), rtol=1e-5, atol=TOLERANCE["kl"])


@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_token_stats_equal_float64(rows: int, vocab: int) -> None:
    x = logits_of(rows, vocab, 3)
    ids = torch.arange(rows) % vocab
    stats = token_stats(StoredLogits(x), ids, top_k=5, block_bytes=4 * vocab * 2)
    want = plain_log_softmax(x)
    torch.testing.assert_close(
        stats.logprob.double(), want[torch.arange(rows), ids], rtol=0, atol=TOLERANCE["logprob"]
    )
    entropy = -(want.exp() * want).sum(1)
    torch.testing.assert_close(stats.entropy.double(), entropy, rtol=0, atol=TOLERANCE["entropy"])
    assert stats.top_ids.shape == (rows, min(5, vocab))
    assert torch.equal(stats.top_ids[:, 0], x.argmax(1))
    if vocab > 1:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(
                stats.entropy.double() * 1.02, entropy, rtol=0, atol=TOLERANCE["entropy"]
            )


def test_a_token_after_the_end_has_no_score() -> None:
    stats = token_stats(StoredLogits(torch.zeros(2, 4)), torch.tensor([1, -1]))
    assert stats.logprob[0] == pytest.approx(-math.log(4))
    assert math.isnan(float(stats.logprob[1]))


def test_unequal_vocabularies_compare_on_shared_ids_and_report_the_rest() -> None:
    p, q = logits_of(3, 10, 4), logits_of(3, 7, 5)
    got = kl_divergence(StoredLogits(p), StoredLogits(q))
    assert got.shared_vocab == 7
    torch.testing.assert_close(got.kl.double(), plain_kl(p[:, :7], q), rtol=1e-5, atol=TOLERANCE["kl"])
    lost = plain_log_softmax(p).exp()[:, 7:].sum(1)
    torch.testing.assert_close(got.dropped_mass_p.double(), lost, rtol=1e-4, atol=1e-6)
    assert float(got.dropped_mass_q.max()) == 0


def test_ids_that_a_model_excludes_do_not_poison_the_sum() -> None:
    p = torch.tensor([[0.0, 1.0, -torch.inf]])
    q = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert float(kl_divergence(StoredLogits(p), StoredLogits(q)).kl) == 0
    far = torch.tensor([[0.0, 1.0, -200.0]])  # its probability underflows, and q excludes the id
    assert 0 <= float(kl_divergence(StoredLogits(far), StoredLogits(p)).kl) < 1e-6
    q = torch.tensor([[0.0, -torch.inf, 1.0]])
    assert float(kl_divergence(StoredLogits(p), StoredLogits(q)).kl) == math.inf


def test_softmax_is_float32_where_float16_fails() -> None:
    x = torch.tensor([[12.0, 0.0, -8.0]], dtype=torch.float16)
    assert float(torch.softmax(x, -1)[0, 2]) == 0
    assert log_softmax(x).dtype == torch.float32
    assert float(log_softmax(x).exp()[0, 2]) > 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="3 rows"):
        token_stats(StoredLogits(torch.zeros(3, 4)), torch.tensor([1]))
    with pytest.raises(ShapeError, match="2 and 3 rows"):
        kl_divergence(StoredLogits(torch.zeros(2, 4)), StoredLogits(torch.zeros(3, 4)))


def test_blocks_cover_every_row_once_within_the_bytes() -> None:
    spans = list(block_bounds(11, 100, block_bytes=1200))
    assert [i for a, b in spans for i in range(a, b)] == list(range(11))
    assert max(b - a for a, b in spans) == 3
    assert list(block_bounds(0, 100)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("value", [1.0, 1.5, 2.0, 19.0, 255.0])
def test_ulp_is_the_gap_to_the_next_number(dtype: torch.dtype, value: float) -> None:
    x = torch.tensor(value, dtype=dtype)
    assert float(torch.nextafter(x, torch.tensor(torch.inf, dtype=dtype)).double() - x.double()) == ulp(
        dtype, value
    )


def test_precisions_have_names_and_a_next_one_up() -> None:
    assert parse_dtype("bf16") is torch.bfloat16
    assert one_up(torch.float16) is torch.float32
    assert one_up(torch.float32) is torch.float64
    assert dtype_name(torch.bfloat16) == "bfloat16"
    with pytest.raises(ConfigError, match="Did you mean 'float32'"):
        parse_dtype("float23")
    with pytest.raises(ConfigError, match="no precision above float64"):
        one_up(torch.float64)
