"""Masked-diffusion decoding: what must hold for every rule, cache and batch, on random models in float64."""

from __future__ import annotations

import json

import pytest
import torch

import twinrun as tr
from tests.support.masked import END, MASK, masked_model, prompts
from twinrun.errors import ConfigError, NonFiniteError, UnsupportedModelError
from twinrun.records.diffusion_run import DiffusionRun

RULES = [tr.Quota(), tr.Quota(3), tr.Threshold(0.5), tr.Factor(1.0)]
CACHES = [
    {"cache": "none"}, {"cache": "prefix"}, {"cache": "dual"}, {"cache": "dual", "refresh_every": 2},
]  # fmt: skip
LENGTH = 24


@pytest.fixture(scope="module")
def model() -> tr.Model:
    return masked_model()


@pytest.fixture(scope="module")
def shifted() -> tr.Model:
    return masked_model(shifts=True, seed=1)


def fill(
    model: tr.Model, given: object, *, length: int = LENGTH, block: int = 8, **kw: object
) -> DiffusionRun:
    asked = {
        k: kw.pop(k) for k in ("steps", "temperature", "seed", "early_stop", "observe", "probe") if k in kw
    }
    return tr.Diffusion(model, block_length=block, **kw).generate(given, length, **asked)


def committed(run: DiffusionRun, row: int = 0) -> list[tuple[int, int]]:
    """(position, token) in the order of the steps."""
    pairs = [zip(s.positions[row], s.tokens[row], strict=True) for s in run.steps]
    return [pair for step in pairs for pair in step]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("which", ["model", "shifted"])
def test_every_position_is_committed_once_with_what_the_record_says(rule, cache, which, request):
    model = request.getfixturevalue(which)
    rows = prompts(5, 9, 2)
    rows[1][3] = rows[2][1] = MASK  # text, not a gap
    run = fill(model, rows, commit=rule, early_stop=False, **cache)
    assert run.prompts == rows
    for row, prompt in enumerate(rows):
        assert run.sequences[row][: len(prompt)] == prompt
        order = committed(run, row)
        assert sorted(p for p, _ in order) == list(range(len(prompt), len(prompt) + LENGTH))
        assert all(run.sequences[row][p] == t for p, t in order)
        assert MASK not in run.canvases[row]
        blocks = [(p - len(prompt)) // 8 for p, _ in order]
        assert blocks == sorted(blocks), "blocks are filled left to right"
    assert all(any(step.positions) for step in run.steps), "every step makes progress"
    assert run.nfe == run.nfe_full + run.nfe_block <= LENGTH * len(rows)
    assert all(0 <= c <= 1 for s in run.steps for row in s.confidence for c in row)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_mask_id_is_never_committed_even_where_the_model_wants_it(cache):
    model = masked_model(seed=4)
    with torch.no_grad():
        model.model.lm_head.weight[MASK] = model.model.lm_head.weight[:8].abs().sum(0)
        model.model.model.norm.weight.abs_()
    given = prompts(6)[0]
    own = model.model(torch.tensor([[*given, *[MASK] * 8]])).logits[0, 6:].argmax(-1)
    assert MASK in own.tolist(), "the control: the model's own choice is the mask"
    for rule in RULES:
        run = fill(model, given, cache=cache, commit=rule)
        assert MASK not in run.canvases[0]
        assert run.nfe <= LENGTH


def test_counts_of_forwards():
    model = masked_model()
    given = prompts(5)[0]
    plain, dual = fill(model, given, early_stop=False), fill(model, given, cache="dual", early_stop=False)
    assert (plain.nfe, plain.nfe_full, plain.nfe_block) == (24, 24, 0)
    assert (dual.nfe, dual.nfe_full, dual.nfe_block) == (24, 3, 21)
    assert [s.computed for s in dual.steps[:3]] == [29, 8, 8]
    assert [s.computed for s in fill(model, given, cache="prefix").steps[:2]] == [29, 24]
    every3 = fill(model, given, cache="dual", refresh_every=3, early_stop=False)
    assert [s.step for s in every3.steps if s.full] == [0, 3, 6] * 3
    assert dual.tokens_per_forward == dual.new_tokens / 24
    one = fill(model, given, steps=3, early_stop=False)
    assert (one.nfe, [len(s.positions[0]) for s in one.steps]) == (3, [8, 8, 8])
    assert one.settings["commit"] == "Quota(steps=1)"
    assert dual.cache_bytes == 2 * 3 * 2 * 30 * 8 * 8
    assert plain.cache_bytes == 0
    assert dual.skip_ratio == 0


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("which", ["model", "shifted"])
@pytest.mark.parametrize("rule", [tr.Quota(), tr.Threshold(0.5)], ids=repr)
def test_refreshing_every_step_is_no_cache(cache, which, rule, request):
    model = request.getfixturevalue(which)
    rows = prompts(5, 9)
    plain = fill(model, rows, commit=rule)
    assert fill(model, rows, commit=rule, cache=cache, refresh_every=1).canvases == plain.canvases
    stale = fill(model, rows, commit=rule, cache=cache)
    assert stale.canvases != plain.canvases, "the control: never refreshed it differs"


@pytest.mark.parametrize("shifts", [False, True])
def test_one_layer_needs_no_refresh(shifts):
    """Keys and values of the only layer see no other token, so nothing in the cache can be stale."""
    for seed in range(3):
        one = masked_model(layers=1, seed=seed, shifts=shifts)
        rows = prompts(5, 9, seed=seed)
        plain = fill(one, rows, early_stop=False)
        for cache in ("prefix", "dual"):
            run = fill(one, rows, cache=cache, early_stop=False)
            assert run.canvases == plain.canvases
            assert committed(run) == committed(plain)
    deep = masked_model(layers=2, seed=0, shifts=shifts)
    rows = prompts(5, 9)
    assert committed(fill(deep, rows, cache="dual")) != committed(fill(deep, rows)), "the control"


@pytest.mark.parametrize("shifts", [False, True])
def test_with_a_single_block_prefix_and_dual_are_the_same(shifts):
    model = masked_model(seed=2, shifts=shifts)
    given = prompts(7)[0]
    whole = {c: fill(model, given, block=LENGTH, cache=c, early_stop=False) for c in ("prefix", "dual")}
    assert whole["prefix"].canvases == whole["dual"].canvases
    assert [s.confidence for s in whole["prefix"].steps] == [s.confidence for s in whole["dual"].steps]
    parts = {c: fill(model, given, cache=c, early_stop=False) for c in ("prefix", "dual")}
    assert parts["prefix"].canvases != parts["dual"].canvases, "the control: with a suffix they differ"


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("cache", CACHES, ids=str)
@pytest.mark.parametrize("which", ["model", "shifted"])
def test_a_row_of_a_batch_is_the_row_alone(rule, cache, which, request):
    model = request.getfixturevalue(which)
    rows = prompts(3, 11, 1, 6)
    together = fill(model, rows, commit=rule, **cache)
    for i, row in enumerate(rows):
        alone = fill(model, row, commit=rule, **cache)
        assert alone.canvases[0] == together.canvases[i]
        assert committed(alone) == committed(together, i)
        assert alone.finish[0] == together.finish[i]
    shown = fill(model, [*rows[:1], [7] * 8 + rows[0]], commit=rule, **cache)
    assert shown.canvases[0] != shown.canvases[1], "the control: text in the place of padding is seen"


def test_threshold_one_is_one_token_a_step_and_zero_is_one_step_a_block(model):
    given = prompts(5)[0]
    plain = fill(model, given)
    assert fill(model, given, commit=tr.Threshold(1.0)).canvases == plain.canvases
    assert fill(model, given, commit=tr.Factor(0.0)).canvases == plain.canvases
    assert fill(model, given, commit=tr.Threshold(0.0), early_stop=False).nfe == 3
    assert fill(model, given, commit=tr.Threshold(0.5)).nfe < plain.nfe, "the control"


def test_rows_that_end_stop_and_what_comes_before_is_the_full_decode():
    seen = 0
    for seed in range(8):
        model = masked_model(seed=seed)
        with torch.no_grad():  # make the end likely
            model.model.lm_head.weight[END] = model.model.lm_head.weight[3] * 1.01
        rows = prompts(4, 8, 2, seed=seed)
        for cache in CACHES:
            full = fill(model, rows, early_stop=False, commit=tr.Threshold(0.6), **cache)
            early = fill(model, rows, commit=tr.Threshold(0.6), **cache)
            assert early.tokens == full.tokens
            assert early.finish == full.finish
            assert early.nfe <= full.nfe
            for row, (tokens, canvas) in enumerate(zip(early.tokens, early.canvases, strict=True)):
                if early.finish[row] == "eos":
                    seen += len(tokens) < len(canvas)
                    assert tokens.index(END) == len(tokens) - 1
                    assert set(canvas[len(tokens) :]) <= {END}
            assert early.new_tokens == sum(map(len, early.tokens))
    assert seen >= 10


def test_chance_belongs_to_a_row_and_its_seed(model):
    rows = prompts(3, 11, 6)
    for kw in ({"temperature": 0.8}, {"remasking": "random", "commit": tr.Quota(3)}):
        drawn = fill(model, rows, seed=5, **kw)
        assert drawn.canvases == fill(model, rows, seed=5, **kw).canvases
        for i, row in enumerate(rows):
            assert fill(model, row, seed=5 + i, **kw).canvases[0] == drawn.canvases[i]
        assert fill(model, rows, seed=6, **kw).canvases != drawn.canvases, "the control"
    warm = fill(model, rows, seed=5, temperature=0.8, cache="dual", refresh_every=1)
    assert warm.canvases == fill(model, rows, seed=5, temperature=0.8).canvases


def test_an_observer_sees_every_step_and_can_stop(model):
    given = prompts(4)[0]
    seen = []
    run = fill(model, given, observe=lambda step: seen.append(step), early_stop=False)
    assert seen == run.steps
    halted = fill(model, given, observe=lambda step: step.index == 2, early_stop=False)
    assert halted.nfe == 3
    assert halted.finish == ["stopped"]
    assert halted.canvases[0].count(MASK) == LENGTH - 3
    assert MASK not in halted.tokens[0]


def test_the_record_is_json_and_says_how_it_was_made(model):
    run = fill(model, prompts(4, 2), cache="dual", commit=tr.Threshold(0.5))
    found = json.loads(json.dumps(run.to_json(), allow_nan=False))
    assert found["runner"] == "diffusion:dual"
    assert found["nfe"] == run.nfe == len(found["steps"])
    assert found["settings"]["commit"] == "Threshold(p=0.5)"
    assert found["canvases"] == run.canvases
    assert found["env"]["packages"]["torch"]


def test_the_model_is_left_as_it_was(model):
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    fill(model, prompts(4, 2), cache="dual")
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


def test_nan_is_refused():
    model = masked_model(seed=3)
    runners = [tr.Diffusion(model, commit=rule, block_length=8) for rule in RULES]
    assert all(runner.generate(prompts(4)[0], 8).nfe for runner in runners), "the control"
    with torch.no_grad():
        model.model.lm_head.weight[5] = torch.nan
    for runner in runners:
        with pytest.raises(NonFiniteError, match="masked position hold NaN"):
            runner.generate(prompts(4)[0], 8)


class NoForward:
    """Looks like a skip policy."""

    def start(self, parts):
        raise AssertionError


BAD_SETTINGS = [
    ({"block_length": 0}, "block_length=0"),
    ({"cache": "duel"}, r"cache='duel' is not one of 'none', 'prefix', 'dual'. Did you mean 'dual'"),
    ({"cach": "dual"}, "unknown setting 'cach'.*Did you mean 'cache'"),
    ({"refresh_every": 2}, "refresh_every=2 without a cache"),
    ({"refresh_every": 0, "cache": "dual"}, "refresh_every=0"),
    ({"remasking": "high"}, "remasking='high'"),
    ({"remasking": "random", "commit": tr.Threshold(0.9)}, "random' ranks by chance"),
    ({"commit": "threshold:0.9"}, "has no choose"),
    ({"skip": NoForward()}, "skip with cache='none'"),
    ({"skip": NoForward(), "cache": "prefix"}, "add cache='dual'"),
    ({"skip": 0.9, "cache": "dual"}, "skip=0.9 has no start"),
]
BAD_REQUESTS = [
    ({"length": 20}, "max_new_tokens=20 is no multiple of block_length=8; use 24"),
    ({"length": 0}, "max_new_tokens must be at least 1"),
    ({"length": 128}, "exceeds the context of masked"),
    ({"steps": 0}, "steps must be at least 1"),
    ({"steps": 2}, "steps=2 over 3 blocks.*use 3"),
    ({"steps": 7}, "steps=7 over 3 blocks.*use 6"),
    ({"steps": 6, "commit": tr.Threshold(0.9)}, "steps=6 together with commit=Threshold"),
    ({"steps": 6, "commit": tr.Quota(2)}, "steps=6 together with commit=Quota"),
    ({"temperature": -1.0}, "temperature must be at least 0"),
    ({"temperature": float("nan")}, "temperature must be at least 0"),
]


@pytest.mark.parametrize(("bad", "words"), BAD_SETTINGS, ids=[w for _, w in BAD_SETTINGS])
def test_impossible_settings_are_refused_in_one_line(model, bad, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        tr.Diffusion(model, **bad)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("bad", "words"), BAD_REQUESTS, ids=[w for _, w in BAD_REQUESTS])
def test_impossible_requests_are_refused_in_one_line(model, bad, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        fill(model, prompts(4)[0], **bad)
    assert "\n" not in str(refusal.value)


def test_models_that_cannot_fill_in_masks_are_refused(shared_llama):
    with pytest.raises(UnsupportedModelError, match=r"is a causal model.*builtin:diffusion"):
        tr.Diffusion(shared_llama)
    nameless = masked_model()
    nameless.model.config.mask_token_id = None
    with pytest.raises(ConfigError, match=r"names no mask token.*set model.config.mask_token_id"):
        tr.Diffusion(nameless)
    with pytest.raises(UnsupportedModelError, match="masked-diffusion"):
        tr.KVCache(masked_model())
