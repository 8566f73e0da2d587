"""Runners: what they record, how they stop, and that a batch changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support.zoo import make
from twinrun.errors import ConfigError, ShapeError
from twinrun.runners.registry import RUNNERS, build_runner

ROWS = [[5, 9, 200, 31, 8, 77, 12], [44, 3], [17, 99, 250, 6]]


WINDOWED = ("kv-cache:sliding", "kv-cache:rolling")
"""Runners that want a model with a window."""
EXACT = sorted(name for name, kind in RUNNERS.items() if kind.exact and name not in WINDOWED)


@pytest.fixture(params=sorted(RUNNERS))
def runner(request: pytest.FixtureRequest, shared_llama: tr.Model) -> Any:
    return build_runner(request.param, make("mistral") if request.param in WINDOWED else shared_llama)


def test_scores_stand_at_their_positions(runner: Any) -> None:
    scores = runner.score(ROWS[0], 3)
    assert scores.tokens == tuple(ROWS[0])
    assert scores.positions.tolist() == [2, 3, 4, 5, 6]
    assert scores.next_ids.tolist() == [31, 8, 77, 12, -1]
    assert scores.logits.rows(0, 5).shape == (5, 320)
    assert scores.path == "streamed from hidden states"


def test_a_row_of_a_batch_is_the_row_alone(runner: Any) -> None:
    """float64: 1e-13, where any leak between rows or from padding would be above 1e-4.

    A quantised cache has one scale for all rows, so a row does feel its neighbours there.
    """
    with runner.raised():
        batch = runner.score_batch(ROWS, [3, 1, 4])
        for row, start, scores in zip(ROWS, [3, 1, 4], batch, strict=True):
            alone = runner.score(row, start)
            got, want = scores.logits.rows(0, 99), alone.logits.rows(0, 99)
            gap = float((got - want).abs().max())
            assert gap < 1e-13 if RUNNERS[runner.name].exact else gap < 0.5


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 4}], ids=["greedy", "sampled"]
)
def test_all_runners_write_the_same_text(shared_llama: tr.Model, settings: dict[str, Any]) -> None:
    runs = [build_runner(name, shared_llama).generate(ROWS, 9, **settings) for name in EXACT]
    assert all(run.tokens == runs[0].tokens for run in runs)
    for i, row in enumerate(ROWS):
        seed = settings.get("seed", 0) + i
        alone = tr.KVCache(shared_llama).generate(row, 9, **{**settings, "seed": seed})
        assert alone.tokens[0] == runs[0].tokens[i]


def test_seeds_repeat_and_differ(shared_llama: tr.Model) -> None:
    def draw(seed: int) -> list[list[int]]:
        return tr.KVCache(shared_llama).generate(ROWS[0], 12, temperature=1.5, seed=seed).tokens

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_generation_equals_transformers_own(shared_llama: tr.Model) -> None:
    ours = tr.KVCache(shared_llama).generate(ROWS[0], 12, stop_at_eos=False).tokens[0]
    theirs = shared_llama.model.generate(
        torch.tensor([ROWS[0]]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        attention_mask=torch.ones(1, 7),
    )
    assert ours == theirs[0, 7:].tolist()


def test_a_row_ends_at_eos_and_the_others_go_on() -> None:
    model = make("llama", "float32")
    free = tr.KVCache(model).generate(ROWS, 8, stop_at_eos=False)
    model.model.generation_config.eos_token_id = free.tokens[1][2]
    run = tr.KVCache(model).generate(ROWS, 8)
    cut = free.tokens[1].index(free.tokens[1][2]) + 1
    assert run.tokens[1] == free.tokens[1][:cut]
    assert run.finish[1] == "eos"
    assert run.tokens[0][:3] == free.tokens[0][:3]
    assert [s.tokens[1] for s in run.steps[cut:]] == [None] * (len(run.steps) - cut)


def test_steps_record_positions_and_cache_lengths(shared_llama: tr.Model) -> None:
    run = tr.KVCache(shared_llama).generate(ROWS[0], 4, stop_at_eos=False)
    assert [s.positions[0] for s in run.steps] == [7, 8, 9, 10]
    assert [s.cache_lengths for s in run.steps] == [(n, n, n) for n in (7, 8, 9, 10)]
    assert run.finish == ["length"]
    assert run.new_tokens == 4


def test_an_observer_can_stop_the_run(shared_llama: tr.Model) -> None:
    run = tr.KVCache(shared_llama).generate(ROWS[0], 50, lambda step: step.index == 2, stop_at_eos=False)
    assert len(run.tokens[0]) == 3
    assert run.finish == ["stopped"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.generate(ROWS[0], 0), "max_new_tokens must be at least 1"),
        (lambda r: r.generate([], 3), "list of prompts is empty"),
        (lambda r: r.generate(ROWS[0], 600), "exceeds the context"),
        (lambda r: r.generate(ROWS[0], 3, temperatur=1), "Did you mean 'temperature'"),
        (lambda r: r.generate(ROWS[0], 3, temperature=-1), "temperature must be at least 0"),
        (lambda r: r.generate(ROWS[0], 3, top_p=0), r"top_p must be in \(0, 1\]"),
        (lambda r: r.generate(ROWS[0], 3, top_k=-2), "top_k must be at least 0"),
        (lambda r: r.score([1, 2, 400], 1), "token id 400 is outside"),
    ],
)
def test_bad_requests(shared_llama: tr.Model, call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(tr.KVCache(shared_llama))


def test_bad_starts(shared_llama: tr.Model) -> None:
    for start in (0, 8):
        with pytest.raises(ShapeError, match="it counts prompt tokens"):
            tr.SinglePass(shared_llama).score(ROWS[0], start)
    with pytest.raises(ShapeError, match="one start a row"):
        tr.SinglePass(shared_llama).score_batch(ROWS, [1])


def test_unknown_kinds_come_with_near_names(shared_llama: tr.Model) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'static'"):
        tr.KVCache(shared_llama, cache="statik")
    with pytest.raises(ConfigError, match="`twinrun runners` lists all"):
        build_runner("recomputed", shared_llama)
    with pytest.raises(ConfigError, match=r"call tr\.load\(model\) first"):
        tr.KVCache(shared_llama.model)


def test_a_cache_that_a_family_cannot_use_is_refused_by_name() -> None:
    from twinrun.errors import UnsupportedModelError

    with pytest.raises(UnsupportedModelError, match="BloomForCausalLM does not run with a static cache"):
        tr.KVCache(make("bloom", "float32"), cache="static").score_batch(ROWS, [3, 1, 4])


def test_score_and_contrast_give_one_number_a_token(shared_llama: tr.Model) -> None:
    other = make("llama", "float32", 1)
    first, second = tr.score(shared_llama, ROWS[:2])
    assert len(first.logprobs) == 7
    assert first.logprobs[0] is None
    assert len(second.logprobs) == 2
    with torch.inference_mode():
        want = torch.log_softmax(shared_llama.model(torch.tensor([ROWS[0]])).logits[0].double(), -1)
    assert first.logprobs[3] == pytest.approx(float(want[2, ROWS[0][3]]), abs=2e-5)
    assert first.total_logprob == pytest.approx(
        sum(float(want[i, t]) for i, t in enumerate(ROWS[0][1:])), abs=1e-4
    )

    found = tr.contrast(shared_llama, other, [ROWS[0]], starts=[3])[0]
    with torch.inference_mode():
        far = torch.log_softmax(other.model(torch.tensor([ROWS[0]])).logits[0].double(), -1)
    kl = (want.exp() * (want - far)).sum(1)
    assert found.kl[:3] == [None] * 3
    assert found.kl[3:] == pytest.approx([float(k) for k in kl[2:6]], rel=1e-4)
    assert found.chosen(0.0) == [3, 4, 5, 6]
    same = tr.contrast(shared_llama, shared_llama, [ROWS[0]])[0]
    assert max(k for k in same.kl if k is not None) < 1e-6
