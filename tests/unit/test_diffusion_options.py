"""Suffix dropout and delayed caching: what they leave out, where they change nothing, and what they refuse."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from tests.support.masked import masked_model, prompts
from twinrun.errors import ConfigError
from twinrun.records.diffusion_run import DiffusionRun

ALL = tr.SuffixWindow(window=1000, decay=0.0, scale=3.0)
NONE = tr.SuffixWindow(window=0)


@pytest.fixture(scope="module")
def model() -> tr.Model:
    return masked_model()


def fill(model: tr.Model, given: object, **kw: object) -> DiffusionRun:
    return tr.Diffusion(model, block_length=8, **kw).generate(given, 24, early_stop=False)


def test_masks_stay_with_the_stated_chance():
    window = tr.SuffixWindow(window=40, decay=3.0, scale=2.0)
    kept = torch.stack([window.keep(60, block) for block in range(4000)]).double().mean(0)
    distance = torch.arange(60).double()
    density = torch.distributions.Normal(0.0, 1.0).log_prob(3.0 * distance / 40).exp()
    law = torch.where(distance < 40, (2.0 * density).clamp(max=1), 0.0)
    assert float((kept - law).abs().max()) < 4.5 * (0.25 / 4000) ** 0.5
    assert float((kept - law.roll(4)).abs().max()) > 4.5 * (0.25 / 4000) ** 0.5, "the control"
    assert not bool(kept[40:].any())
    same = [tr.SuffixWindow(seed=s).keep(200, 1).tolist() for s in (0, 0, 1)]
    assert same[0] == same[1] != same[2]
    assert tr.SuffixWindow().keep(200, 2).tolist() != same[0]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("shifts", [False, True])
def test_a_window_that_keeps_all_changes_nothing_and_one_that_keeps_none_is_the_text_so_far(cache, shifts):
    model = masked_model(shifts=shifts)
    rows = prompts(5, 9)
    assert (
        fill(model, rows, cache=cache, suffix_window=ALL).canvases == fill(model, rows, cache=cache).canvases
    )
    short = fill(model, rows[0], cache=cache, suffix_window=NONE)
    text = list(rows[0])
    for block in range(3):
        alone = tr.Diffusion(model, block_length=8, cache=cache).generate(text, 8, early_stop=False)
        text += alone.canvases[0]
        assert short.canvases[0][8 * block : 8 * block + 8] == alone.canvases[0]
    assert short.canvases != fill(model, rows[0], cache=cache).canvases, "the control"


def test_fewer_tokens_are_computed_and_a_row_is_still_the_row_alone(model):
    rows = prompts(5, 9, 2)
    window = tr.SuffixWindow(window=12, decay=2.0)
    for cache in ("none", "dual"):
        run = fill(model, rows, cache=cache, suffix_window=window)
        plain = fill(model, rows, cache=cache)
        assert sum(s.computed for s in run.steps) < sum(s.computed for s in plain.steps)
        assert [
            fill(model, row, cache=cache, suffix_window=window).canvases[0] for row in rows
        ] == run.canvases
    kept = int(window.keep(16, 0).sum())
    assert run.steps[0].computed == 3 * (9 + 8 + kept)


@pytest.mark.parametrize("shifts", [False, True])
def test_delay_computes_what_is_open_and_what_was_decided_last(shifts):
    model = masked_model(shifts=shifts)
    run = fill(model, prompts(5)[0], cache="dual", delay=True)
    plain = fill(model, prompts(5)[0], cache="dual")
    block = run.steps[:8]
    if not shifts:
        assert [s.token_layers for s in block] == [29 * 3] + [3 * (9 - i) for i in range(1, 8)]
    assert sum(s.token_layers for s in run.steps) < sum(s.token_layers for s in plain.steps)
    assert run.skip_ratio > 0 == plain.skip_ratio
    assert (run.steps[0].tokens, run.steps[0].confidence) == (
        plain.steps[0].tokens,
        plain.steps[0].confidence,
    )
    second = run.steps[1].confidence[0] + plain.steps[1].confidence[0]
    assert second[0] == pytest.approx(second[1], rel=1e-12), "after one commit nothing is left out yet"


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("rule", [tr.Quota(), tr.Quota(3), tr.Threshold(0.5)], ids=repr)
def test_delay_changes_nothing_with_one_layer_or_with_a_refresh_every_step(shifts, rule):
    rows = prompts(5, 9, 2)
    one = masked_model(layers=1, shifts=shifts)
    assert (
        fill(one, rows, cache="dual", delay=True, commit=rule).canvases
        == fill(one, rows, commit=rule).canvases
    )
    deep = masked_model(seed=1, shifts=shifts)
    every = fill(deep, rows, cache="dual", delay=True, refresh_every=1, commit=rule)
    assert every.canvases == fill(deep, rows, commit=rule).canvases
    stale = fill(deep, rows, cache="dual", delay=True, commit=rule)
    assert stale.canvases != every.canvases, "the control"
    for i, row in enumerate(rows):
        assert fill(deep, row, cache="dual", delay=True, commit=rule).canvases[0] == stale.canvases[i]


def test_verdicts_speak_of_them():
    model = masked_model(dtype=torch.float32)
    plain, cases = tr.Diffusion(model, block_length=8), [prompts(26)[0]]
    assert (
        tr.verify(plain, tr.Diffusion(model, block_length=8, suffix_window=ALL), cases).verdict == "identical"
    )
    for kw in ({"suffix_window": NONE}, {"cache": "dual", "delay": True}):
        fast = tr.Diffusion(model, block_length=8, **kw)
        verdict = tr.verify(plain, fast, cases, budget={"kl": 5.0})
        assert (verdict.verdict, verdict.kl_mean > 1e-4) == ("lossy", True)
        assert verdict.candidate == fast.name
    one = masked_model(layers=1, dtype=torch.float32)
    delayed = tr.Diffusion(one, block_length=8, cache="dual", delay=True)
    same = tr.verify(tr.Diffusion(one, block_length=8), delayed, cases)
    assert same.verdict in ("identical", "equivalent")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: tr.SuffixWindow(window=-1), r"SuffixWindow\(window=-1\)"),
        (lambda m: tr.SuffixWindow(decay=float("nan")), r"SuffixWindow\(decay=nan\)"),
        (lambda m: tr.Diffusion(m, suffix_window=64), r"suffix_window=64 is no SuffixWindow"),
        (lambda m: tr.Diffusion(m, delay=True), r"delay with cache='none'"),
        (lambda m: tr.Diffusion(m, delay=True, cache="prefix"), r"delay with cache='prefix'"),
    ],
)
def test_impossible_options_are_refused_in_one_line(model, make, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        make(model)
    assert "\n" not in str(refusal.value)
