"""Proposals: the token, its probability to the last digits that matter, and draws that follow the stated law."""

from __future__ import annotations

import pytest
import torch

from twinrun.diffusion import propose as module
from twinrun.diffusion.propose import chunks, propose


def logits(rows: int = 64, vocab: int = 301, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1)) * scale


@pytest.mark.parametrize("scale", [0.1, 4.0, 40.0])
def test_probability_is_softmax_and_next_to_one_its_rest_is_exact(scale):
    given = logits(scale=scale)
    tokens, confidence = propose(given)
    assert torch.equal(tokens, given.argmax(-1))
    exact = given.double().softmax(-1)
    torch.testing.assert_close(confidence, exact.gather(1, tokens[:, None])[:, 0], rtol=1e-6, atol=0)
    rest = exact.scatter(1, tokens[:, None], 0.0).sum(-1)
    close = {"rtol": 2e-6, "atol": 1.2e-16}
    torch.testing.assert_close(1 - confidence, rest, **close)
    if scale == 40.0:
        naive = given.softmax(-1).amax(-1).double()
        with pytest.raises(AssertionError):  # the control: a float32 softmax has lost it
            torch.testing.assert_close(1 - naive, rest, **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    given = logits().to(dtype)
    tokens, confidence = propose(given)
    want = given.double().softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(confidence, want, rtol=1e-6, atol=0)
    assert confidence.dtype == torch.float64


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_their_temperature(temperature):
    row = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    draws = 40_000
    source = torch.Generator().manual_seed(3)
    tokens, confidence = propose(row.expand(draws, -1), temperature, source)
    got = torch.bincount(tokens, minlength=5).double() / draws

    def far(law: torch.Tensor) -> float:
        return float(((got - law).abs() / (law * (1 - law) / draws).sqrt().clamp_min(1e-12)).max())

    assert far((row.double() / temperature).softmax(-1)) < 4.5
    assert far((row.double() / (temperature * 1.1)).softmax(-1)) > 4.5, (
        "the control: a tenth warmer is refused"
    )
    torch.testing.assert_close(confidence, row.double().softmax(-1)[tokens], rtol=1e-6, atol=0)
    assert not bool((tokens == 4).any())


def test_nan_is_not_hidden():
    given = logits(3)
    given[1, 7] = torch.nan
    assert propose(given)[1].isnan().tolist() == [False, True, False]


def test_pieces_cover_all_and_with_noise_never_mix_rows(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 10 * 4)
    assert list(chunks([3, 0, 6], 10, by_row=False)) == [(0, slice(0, 4)), (0, slice(4, 8)), (0, slice(8, 9))]
    assert list(chunks([3, 0, 6], 10, by_row=True)) == [(0, slice(0, 3)), (2, slice(3, 7)), (2, slice(7, 9))]
    assert list(chunks([2], 10**6, by_row=True)) == [(0, slice(0, 1)), (0, slice(1, 2))]
