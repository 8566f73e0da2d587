"""Fingerprints keep the length of a difference, whatever the width; exact equality stays exact."""

from __future__ import annotations

import pytest
import torch

from twinrun.numerics.fingerprint import DIMS, difference, fingerprints, one_minus_cosine


@pytest.mark.parametrize("width", [1, 3, 64, 5000])
@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0])
def test_relative_differences_are_kept(width, size):
    torch.manual_seed(width)
    a = torch.randn(40, width, dtype=torch.float64)
    d = torch.randn(40, width, dtype=torch.float64)
    b = a + size * d
    found = difference(fingerprints(b), fingerprints(a))
    lengths = a.norm(dim=-1)
    true = size * d.norm(dim=-1) / lengths.clamp_min(float(lengths.median()))
    assert torch.all((found / true > 0.3) & (found / true < 2.0))


def test_equal_rows_differ_by_nothing_and_others_do():
    a = torch.randn(5, 300)
    assert difference(fingerprints(a), fingerprints(a.clone())).tolist() == [0.0] * 5
    b = a.clone()
    b[3, 7] = torch.nextafter(b[3, 7], torch.tensor(9.0))
    assert (difference(fingerprints(b), fingerprints(a)) > 0).tolist() == [False] * 3 + [True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_is_infinitely_far(bad):
    a = torch.randn(3, 10)
    b = a.clone()
    b[1, 2] = bad
    found = difference(fingerprints(b), fingerprints(a))
    assert torch.isinf(found).tolist() == [False, True, False]
    assert torch.isinf(difference(fingerprints(b), fingerprints(b))).tolist() == [False, True, False]


def test_blocks_give_what_one_block_gives(monkeypatch):
    from twinrun.numerics import fingerprint

    a = torch.randn(33, 17)
    whole = fingerprints(a)
    monkeypatch.setattr(fingerprint, "BLOCK_BYTES", 17 * 8 * 4)
    assert torch.allclose(fingerprints(a), whole, rtol=1e-14, atol=1e-14)
    assert whole.shape == (33, DIMS + 1)


def test_cosine_of_known_angles():
    a = torch.zeros(2, 4000)
    a[:, 0] = 1.0
    b = a.clone()
    b[1, 1] = 1.0
    found = one_minus_cosine(fingerprints(a), fingerprints(b))
    assert found[0] == 0
    assert 0.15 < float(found[1]) < 0.5  # 1 - cos 45 degrees is 0.293; the projection is good to a third
