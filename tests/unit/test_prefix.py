"""Prefix reuse: what is shared is not run again, scores stay, and nothing comes from another text or model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support.zoo import make
from twinrun.errors import ConfigError

COMMON = [5, 9, 200, 31, 8, 77, 12, 44]
FIRST, SECOND = [*COMMON, 3, 17, 99], [*COMMON, 250, 6, 14, 61]


def exact(runner: Any, text: list[int], start: int) -> Tensor:
    with runner.raised():
        found: Tensor = runner.score(text, start).logits.rows(0, 99)
    return found


def gap(runner: Any, text: list[int] = SECOND, start: int = 11) -> float:
    """Largest gap of a logit to the plain way, in float64."""
    return float((exact(runner, text, start) - exact(tr.Recompute(runner.model), text, start)).abs().max())


def test_a_prompt_goes_on_from_the_longest_common_prefix() -> None:
    runner = tr.KVCache(make("llama"), "prefix")
    runner.score(FIRST, 10)
    assert runner.reused_tokens == (0,)
    runner.score(SECOND, 11)
    assert runner.reused_tokens == (8,)
    runner.score(FIRST, 10)
    assert runner.reused_tokens == (9,)  # the last token of a prompt is run again, for its scores
    runner.score(SECOND[:6], 6)
    assert runner.reused_tokens == (5,)
    runner.score([7, 7, 7], 2)
    assert runner.reused_tokens == (0,)


def test_a_text_that_was_generated_is_reused_too() -> None:
    runner = tr.KVCache(make("llama"), "prefix")
    new = runner.generate(FIRST, 6, stop_at_eos=False).tokens[0]
    chat = [*FIRST, *new, 21, 22]
    plain = tr.KVCache(runner.model).generate(chat, 4, stop_at_eos=False).tokens
    assert runner.generate(chat, 4, stop_at_eos=False).tokens == plain
    assert runner.reused_tokens == (len(FIRST) + 5,)  # the newest token was chosen and never fed


def test_only_what_is_new_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from twinrun.runners import forward

    runner, widths, right = tr.KVCache(make("llama"), "prefix"), [], forward.forward
    runner.score(FIRST, 11)
    monkeypatch.setattr(
        forward,
        "forward",
        lambda model, ids, **rest: (widths.append(ids.shape[1]), right(model, ids, **rest))[1],
    )
    runner.score(SECOND, 12)
    assert widths == [4]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "phi", "qwen3moe", "deepseek3"])
def test_reuse_changes_no_score(family: str) -> None:
    runner = tr.KVCache(make(family), "prefix")
    exact_before = gap(runner, FIRST, 9)
    with runner.raised():
        runner.score(FIRST, 10)
        runner.score(SECOND, 11)
        assert runner.reused_tokens == (8,)
    assert max(exact_before, gap(runner)) < 1e-12


def test_routers_of_reused_tokens_are_known() -> None:
    runner = tr.KVCache(make("qwen3moe"), "prefix")
    runner.score(FIRST, 10)
    again, fresh = runner.score(SECOND, 11), tr.KVCache(runner.model).score(SECOND, 11)
    assert runner.reused_tokens == (8,)
    assert again.routes is not None
    assert fresh.routes is not None
    for ours, theirs in zip(again.routes.experts, fresh.routes.experts, strict=True):
        assert torch.equal(ours, theirs)


def test_interleaved_texts_do_not_touch_each_other() -> None:
    """Two texts that share a beginning are fed in turns; each is the text by itself at every step."""
    model = make("llama")
    runner, plain = tr.KVCache(model, "prefix"), tr.SinglePass(model)
    with runner.raised():
        left, right = runner.open(FIRST, 6), runner.open(SECOND, 6)
        assert (left.reused, right.reused) == (0, 8)
        for token in (7, 8, 9):
            for run, other in ((left, token), (right, token + 100)):
                found = run.feed([[other]])[0, -1]
                text = run.tokens[0]
                assert float((found - plain.score(text, len(text)).logits.rows(0, 1)[0]).abs().max()) < 1e-12
        left.roll_back(2)
        left.feed([[30]])
    assert gap(runner) < 1e-12


def test_a_batch_starts_afresh_and_rows_of_a_scored_batch_follow_each_other() -> None:
    runner = tr.KVCache(make("llama"), "prefix")
    runner.generate([FIRST, SECOND], 3)
    assert runner.reused_tokens == (0, 0)
    runner.score_batch([FIRST, SECOND], [10, 11])
    assert runner.reused_tokens == (0, 8)


def scale(model: tr.Model) -> None:
    with torch.no_grad():
        next(model.core.parameters()).mul_(1.5)


def steer(model: tr.Model) -> None:
    model.layout.layers[0].register_forward_hook(lambda _m, _a, out: out * 1.25)


def patch(model: tr.Model) -> None:
    layer = model.layout.layers[1]
    right = layer.forward
    layer.forward = lambda *args, **kwargs: right(*args, **kwargs) * 1.25


def load_other(model: tr.Model) -> None:
    model.core.load_state_dict(make("llama", seed=1).core.state_dict())


CHANGES = [scale, steer, patch, load_other]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_changed_model_does_not_read_what_it_did_not_write(change: Callable[[tr.Model], None]) -> None:
    runner = tr.KVCache(make("llama"), "prefix")
    runner.score(FIRST, 10)
    change(runner.model)
    found = runner.score(SECOND, 11).logits.rows(0, 99)
    assert runner.reused_tokens == (0,)
    assert torch.equal(found, tr.KVCache(runner.model).score(SECOND, 11).logits.rows(0, 99))


def test_precisions_do_not_mix_even_when_the_weights_change_in_between() -> None:
    runner = tr.KVCache(make("llama"), "prefix")
    for _ in range(3):
        with runner.raised():
            runner.score(FIRST, 10)
            assert runner.reused_tokens == (0,)
            runner.score(SECOND, 11)
            assert runner.reused_tokens == (8,)
        scale(runner.model)
    assert gap(runner) < 1e-12


def test_what_torch_does_not_count_is_forgotten_on_request() -> None:
    runner = tr.KVCache(make("llama"), "prefix")
    runner.score(FIRST, 10)
    next(runner.model.core.parameters()).data.mul_(1.5)
    runner.forget()
    found = runner.score(SECOND, 11).logits.rows(0, 99)
    assert torch.equal(found, tr.KVCache(runner.model).score(SECOND, 11).logits.rows(0, 99))


def test_a_store_that_ignores_the_state_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above."""
    from twinrun.runners import prefix

    monkeypatch.setattr(prefix, "model_state", lambda model: None)
    runner = tr.KVCache(make("llama"), "prefix")
    runner.score(FIRST, 10)
    scale(runner.model)
    found = runner.score(SECOND, 11).logits.rows(0, 99)
    assert runner.reused_tokens == (8,)
    assert not torch.allclose(found, tr.KVCache(runner.model).score(SECOND, 11).logits.rows(0, 99), atol=1e-3)


def test_only_the_latest_texts_are_kept() -> None:
    runner = tr.KVCache(make("llama"), "prefix", entries=2)
    for first in (5, 6, 7):
        runner.score([first, 9, 9, 9], 3)
    reused = []
    for first in (7, 6, 5):
        runner.score([first, 9, 9, 8], 4)
        reused.append(runner.reused_tokens[0])
    assert reused[0] == 3
    assert reused[2] == 0
    assert len(runner._prefixes._kept) == 2


def test_a_forward_that_fails_leaves_no_half_text() -> None:
    runner = tr.KVCache(make("llama"), "prefix")
    run = runner.open(FIRST, 5)
    layer = runner.model.layout.layers[2]
    with pytest.MonkeyPatch.context() as patched:
        calls = itertools.count()

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"stop {next(calls)}")

        patched.setattr(layer, "forward", fail)
        with pytest.raises(RuntimeError, match="stop"):
            run.feed([[3, 4]])
    with pytest.raises(ConfigError, match="an earlier forward of this run failed"):
        run.feed([[3, 4]])
    text = [*FIRST, 3, 4, 8]
    found = runner.score(text, len(text)).logits.rows(0, 1)
    assert torch.allclose(found, tr.KVCache(runner.model).score(text, len(text)).logits.rows(0, 1), atol=1e-5)
