"""Teacher-forced scores of a diffusion model, and what `verify` says of its caches by them."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from tests.support.masked import MASK, masked_model, prompts
from twinrun.errors import ConfigError, ShapeError
from twinrun.verify.case import Case


@pytest.fixture(scope="module")
def model() -> tr.Model:
    return masked_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def one_layer() -> tr.Model:
    return masked_model(layers=1, dtype=torch.float32, seed=1)


def by_definition(model: tr.Model, row: list[int], start: int, block: int, per_step: int) -> torch.Tensor:
    """Score a row with whole forwards of the model itself: `[len(row) - start + 1, vocab]`."""
    found, end = [], len(row) + 1
    at = start
    while at < end:
        stop = min(at + per_step, start + ((at - start) // block + 1) * block, end)
        ids = torch.tensor([row[:at] + [MASK] * (end - at)])
        with torch.inference_mode():
            logits = model.model(input_ids=ids, use_cache=False).logits[0]
        shift = int(model.shifts_logits)
        found.append(logits[at - shift : stop - shift])
        at = stop
    return torch.cat(found)


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize(("quota", "per_step"), [(tr.Quota(), 1), (tr.Quota(4), 2), (tr.Threshold(0.3), 1)])
def test_scores_are_those_of_whole_forwards(quota, per_step, shifts):
    model = masked_model(shifts=shifts)
    rows = prompts(19, 12, 3)
    rows[0][11] = MASK  # a mask in the text is committed as it is
    starts = [4, 9, 3]
    runner = tr.Diffusion(model, commit=quota, block_length=8)
    for got, row, start in zip(runner.score_batch(rows, starts), rows, starts, strict=True):
        want = by_definition(model, row, start, 8, per_step)
        ours = got.logits.rows(0, got.logits.num_rows)
        torch.testing.assert_close(ours, want, rtol=0, atol=1e-11 * float(want.abs().max()))
        assert got.positions.tolist() == list(range(start - 1, len(row)))
        assert got.tokens == tuple(row)
        wrong = by_definition(model, row, start, 8, per_step + 1)
        if len(row) - start > 2:
            assert float((ours - wrong).abs().max()) > 0.01, "the control: another order is seen"


def test_scores_of_a_cache_come_from_its_own_forwards(model):
    row = prompts(22)[0]
    runner = {c: tr.Diffusion(model, cache=c, block_length=8) for c in ("none", "prefix", "dual")}
    found = {c: r.score(row, 5) for c, r in runner.items()}
    assert found["none"].path == "masks filled in left to right, 18 full and 0 partial forwards"
    assert found["dual"].path == "masks filled in left to right, 3 full and 15 partial forwards"
    rows = {c: s.logits.rows(0, 18) for c, s in found.items()}
    firsts = [0, 8, 16]
    assert torch.equal(rows["dual"][firsts], rows["none"][firsts]), (
        "the first step of a block is a full forward"
    )
    assert float((rows["dual"] - rows["none"]).abs().max()) > 0.01
    assert float((rows["dual"] - rows["prefix"]).abs().max()) > 0.01


def test_a_first_cached_step_with_unchanged_tokens_is_the_full_step(model):
    """The text's first token is the mask itself, so the second step is computed from an unchanged canvas."""
    row = prompts(20)[0]
    row[6] = MASK
    full = tr.Diffusion(model, block_length=8).score(row, 6).logits.rows(0, 15)
    for cache in ("prefix", "dual"):
        cached = tr.Diffusion(model, block_length=8, cache=cache).score(row, 6).logits.rows(0, 15)
        torch.testing.assert_close(cached[1], full[1], rtol=0, atol=2e-5 * float(full.abs().max()))
        assert float((cached[2] - full[2]).abs().max()) > 0.01, "the control: now a token has changed"


def cases() -> list[Case]:
    rows = prompts(25, 18, 30, seed=3)
    batch = Case(label="batch", rows=tuple(map(tuple, rows)), starts=(6, 9, 11))
    return [Case(label="one", rows=(tuple(rows[2]),), starts=(7,)), batch]


def judged(model: tr.Model, budget: dict[str, float] | None = None, **kw: object) -> tr.Verdict:
    plain = tr.Diffusion(model, block_length=8)
    return tr.verify(plain, tr.Diffusion(model, block_length=8, **kw), cases(), budget=budget)


def test_verdicts_on_what_changes_nothing(model, one_layer):
    assert judged(model).verdict == "identical"
    assert judged(model, cache="dual", refresh_every=1).verdict == "identical"
    assert judged(model, cache="prefix", refresh_every=1).verdict == "identical"
    assert judged(one_layer, cache="dual").verdict in ("identical", "equivalent")
    assert judged(one_layer, cache="prefix").verdict in ("identical", "equivalent")


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_is_lossy_inside_its_budget_and_different_without(model, cache):
    inside = judged(model, {"kl": 5.0}, cache=cache)
    assert (inside.verdict, inside.kl_mean > 1e-4) == ("lossy", True)
    assert judged(model, {"kl": 1e-6}, cache=cache).verdict == "different"
    assert judged(model, cache=cache).verdict == "different"
    refreshed = judged(model, {"kl": 5.0}, cache=cache, refresh_every=2)
    assert refreshed.kl_mean < inside.kl_mean


def test_a_wrong_position_is_convicted(one_layer, monkeypatch):
    """The control of the one-layer verdicts: block-local positions in cached steps, the fault of public code."""
    from twinrun.diffusion.passes import Passes

    feed = Passes.feed

    def local(self, step, layers=None, *, full):
        found = feed(self, step, layers, full=full)
        if not full:
            count = found.columns.stop - found.columns.start
            cos, sin = self._rotary
            found.rotary = (cos[:, :count], sin[:, :count])
        return found

    monkeypatch.setattr(Passes, "feed", local)
    assert judged(one_layer, cache="dual").verdict == "different"


def test_probes_hold_what_a_causal_order_promises(model):
    verdict = tr.verify(
        tr.Diffusion(model, block_length=8),
        tr.Diffusion(model, block_length=8, cache="dual", refresh_every=1),
        tr.probes(model, max_tokens=60),
    )
    assert verdict.verdict == "identical"


def test_one_precision_up_is_the_same_model(model):
    row = prompts(14)[0]
    runner = tr.Diffusion(model, cache="dual", block_length=8)
    low = runner.score(row, 5).logits.rows(0, 10)
    with runner.raised():
        assert runner.dtype == "float64"
        high = runner.score(row, 5)
    up = high.logits.rows(0, 10)
    assert up.dtype == torch.float64
    gap = float((low - up).abs().max())
    assert 0 < gap < 1e-4
    assert torch.equal(runner.score(row, 5).logits.rows(0, 10), low)


def test_one_precision_up_is_the_same_without_memory_for_raised_weights(model, monkeypatch):
    row = prompts(14)[0]
    runner = tr.Diffusion(model, cache="dual", block_length=8)
    with runner.raised():
        roomy = runner.score(row, 5)
    monkeypatch.setattr("twinrun.models.model.free_bytes", lambda device: 0)
    with runner.raised():
        tight = runner.score(row, 5)
    torch.testing.assert_close(tight.logits.rows(0, 10), roomy.logits.rows(0, 10), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("shifts", [False, True])
def test_layers_of_another_kind_give_the_same_scores(cache, shifts):
    """They are computed whole, where only keys and values of most rows are needed of the last."""
    model, row = masked_model(shifts=shifts), prompts(20)[0]
    runner = tr.Diffusion(model, cache=cache, block_length=8)
    known = runner.score(row, 5).logits.rows(0, 16)
    for layer in model.model.model.layers:
        layer.__class__ = type("Other", (type(layer),), {})
    whole = runner.score(row, 5).logits.rows(0, 16)
    torch.testing.assert_close(known, whole, rtol=0, atol=1e-11 * float(whole.abs().max()))


def test_the_token_behind_the_end_needs_a_place(model):
    runner = tr.Diffusion(model, block_length=8)
    assert runner.max_context == 128
    assert runner.score(prompts(127)[0], 126).positions.tolist() == [125, 126]
    with pytest.raises(ConfigError, match="128 tokens and 1 new ones exceeds the context of masked"):
        runner.score(prompts(128)[0], 126)
    with pytest.raises(ShapeError, match="start=0"):
        runner.score(prompts(5)[0], 0)
