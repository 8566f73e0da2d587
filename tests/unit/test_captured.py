"""A captured step is the model's own step: same numbers, seen changes, honest refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import twinrun as tr
from tests.conftest import fingerprint
from tests.support.zoo import make
from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.faults.registry import get_fault
from twinrun.runners.unchanged import state_of, why_not

ROWS = [[5, 9, 200, 31, 8, 77, 12], [44, 3], [17, 99, 250, 6]]
FAMILIES = ("llama", "mistral", "gpt2", "gpt-post", "bloom")


def captured(model: tr.Model, cache: str = "static") -> tr.KVCache:
    return tr.KVCache(model, cache, step="captured")


def used(run: tr.Run) -> int:
    """Steps that a graph ran; an assertion that nothing fell back."""
    assert run.settings.get("step_fallback") is None, run.settings
    return int(run.settings["steps_replayed"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_the_same_text_alone_and_in_a_batch(family: str) -> None:
    model = make(family, "float32")
    plain, fast = tr.KVCache(model), captured(model)
    for prompt in (ROWS[0], ROWS):
        want = plain.generate(prompt, 24, stop_at_eos=False)
        got = fast.generate(prompt, 24, stop_at_eos=False)
        assert got.tokens == want.tokens
        assert used(got) == 23
        assert [s.positions for s in got.steps] == [s.positions for s in want.steps]
        assert [s.logprobs for s in got.steps] == [pytest.approx(s.logprobs, abs=1e-4) for s in want.steps]
        assert [s.cache_lengths[0] for s in got.steps] == [len(ROWS[0]) + i for i in range(24)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_score_bit_for_bit_like_the_own_forward(dtype: str) -> None:
    """On the same filled slots: the graph calls the same kernels."""
    model = make("llama", dtype)
    row = list(range(3, 40))
    got, want = captured(model).score(row, 5), tr.KVCache(model).score(row, 5)
    assert got.path.endswith("captured step")
    assert torch.equal(got.logits.rows(0, 99), want.logits.rows(0, 99))


def test_draws_are_the_same(shared_llama: tr.Model) -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 4}
    want = tr.KVCache(shared_llama).generate(ROWS, 9, **settings)
    assert captured(shared_llama).generate(ROWS, 9, **settings).tokens == want.tokens


def test_eos_and_observers_end_a_run(shared_llama: tr.Model) -> None:
    run = captured(shared_llama).generate(ROWS[0], 50, lambda step: step.index == 2, stop_at_eos=False)
    assert run.finish == ["stopped"]
    assert len(run.tokens[0]) == 3


def test_a_window_is_a_condition_of_the_graph() -> None:
    """Mistral's mask appears at 16 tokens: the first graph says so, and a second one is captured."""
    model = make("mistral", "float32")
    fast = captured(model)
    run = fast.generate(ROWS[0], 24, stop_at_eos=False)
    assert used(run) == 23
    assert fast._steps is not None
    graphs = [g for found in fast._steps.store.graphs.values() for g in found]
    assert len(graphs) == 2
    before, behind = graphs[1].captured, graphs[0].captured
    assert before.holds(10, 10, 11, 64)
    assert not before.holds(20, 20, 21, 64)
    assert behind.holds(20, 20, 21, 64)


def test_the_ring_goes_on_past_its_block() -> None:
    model = make("gpt-pre", "float32")
    plain, fast = (
        tr.KVCache(model, "rolling", window=16),
        tr.KVCache(model, "rolling", window=16, step="captured"),
    )
    want, got = (r.generate(ROWS[0], 60, stop_at_eos=False) for r in (plain, fast))
    assert got.tokens == want.tokens
    assert used(got) == 59


def test_a_verdict_judges_the_step_that_is_timed() -> None:
    model = make("llama", "bfloat16")
    verdict = tr.verify(tr.Recompute(model), captured(model), [list(range(3, 40))])
    assert verdict.passed
    assert verdict.paths["candidate"].endswith("captured step")
    assert verdict.paths["candidate_up"].endswith("captured step")  # captured again, one precision up


def test_the_model_is_left_as_it_was() -> None:
    """LongRoPE keeps a tensor that its forward makes; on fake tensors that would be a fake one."""
    for family in ("llama", "phi3-long"):
        model = make(family, "float32")
        tr.KVCache(model).generate(ROWS[0], 3)
        before, kept = fingerprint(model.model), [dict(vars(m)) for m in model.core.modules()]
        captured(model).generate(ROWS[0], 6, stop_at_eos=False)
        assert fingerprint(model.model) == before
        now = [dict(vars(m)) for m in model.core.modules()]
        for was, is_now in zip(kept, now, strict=True):
            assert was.keys() == is_now.keys()
            assert not any(type(v).__name__ == "FakeTensor" for v in is_now.values())


def _in_place(model: tr.Model) -> None:
    with torch.no_grad():
        model.model.model.layers[1].self_attn.v_proj.weight.mul_(1.05)


def _replaced(model: tr.Model) -> None:
    old = model.model.model.layers[1].mlp.up_proj
    old.weight = nn.Parameter(old.weight.detach() * 1.05)


def _other_module(model: tr.Model) -> None:
    layer = model.model.model.layers[1]
    other = nn.Linear(layer.mlp.up_proj.in_features, layer.mlp.up_proj.out_features, bias=False).eval()
    layer.mlp.up_proj = other


def _setting(model: tr.Model) -> None:
    model.model.model.layers[1].self_attn.scaling *= 1.3


@pytest.mark.parametrize("change", [_in_place, _replaced, _other_module, _setting])
def test_a_change_after_capture_is_seen(change: Any) -> None:
    model = make("llama", "float32")
    fast = captured(model)
    row = list(range(3, 30))
    before = fast.score(row, 5).logits.rows(0, 99)
    change(model)
    got, want = fast.score(row, 5).logits.rows(0, 99), tr.KVCache(model).score(row, 5).logits.rows(0, 99)
    assert torch.equal(got, want)
    assert not torch.allclose(got, before, atol=1e-3)  # the change is large enough to be seen at all


@contextmanager
def _hook(model: tr.Model) -> Iterator[None]:
    handle = model.model.model.layers[1].register_forward_hook(lambda _m, _a, out: out * 1.05)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _forward(model: tr.Model) -> Iterator[None]:
    part = model.model.model.layers[1].mlp
    right = part.forward
    part.forward = lambda x: right(x) * 1.05
    try:
        yield
    finally:
        del part.forward


@pytest.mark.parametrize(("patch", "why"), [(_hook, "has hooks"), (_forward, "put in its place")])
def test_code_that_a_graph_would_pass_by_runs(patch: Any, why: str) -> None:
    model = make("llama", "float32")
    fast, row = captured(model), list(range(3, 30))
    clean = fast.score(row, 5)
    with patch(model):
        patched = fast.score(row, 5)
        want = tr.KVCache(model).score(row, 5).logits.rows(0, 99)
        assert why in patched.path
        assert torch.allclose(patched.logits.rows(0, 99), want, atol=1e-5)
    assert not torch.allclose(patched.logits.rows(0, 99), clean.logits.rows(0, 99), atol=1e-3)
    assert fast.score(row, 5).path == clean.path


def test_a_patch_that_nothing_names_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the modelling file, replaced after capture: the first step of the next run differs."""
    model = make("llama", "float32")
    fast, row = captured(model), list(range(3, 30))
    clean = fast.score(row, 5).logits.rows(0, 99)
    import transformers.models.llama.modeling_llama as code

    right = code.apply_rotary_pos_emb

    def wrong(*args: Any, **kwargs: Any) -> Any:
        return tuple(x * 1.2 for x in right(*args, **kwargs))

    monkeypatch.setattr(code, "apply_rotary_pos_emb", wrong)
    got, want = fast.score(row, 5), tr.KVCache(model).score(row, 5)
    assert torch.equal(got.logits.rows(0, 99), want.logits.rows(0, 99))
    assert not torch.allclose(got.logits.rows(0, 99), clean, atol=1e-3)


@pytest.mark.parametrize("name", ["cache-slot-not-written", "value-scale-off", "float8-cache"])
def test_a_planted_fault_is_convicted(name: str) -> None:
    model = make("llama", "float32")
    broken = make("llama", "float32")
    fast = captured(broken)
    fast.generate(ROWS[0], 3)  # a graph of the right model is there already
    cases = [tr.Case(label="text", rows=(tuple(range(3, 30)),), starts=(5,))]
    with get_fault(name).plant(fast):
        assert tr.verify(tr.Recompute(model), fast, cases, explain=False).verdict == "different"
    assert tr.verify(tr.Recompute(model), fast, cases).passed


def test_states_differ_where_a_step_could() -> None:
    model = make("llama", "float32")
    before = state_of(model)
    assert state_of(model) == before
    with ExitStack() as undo:
        undo.enter_context(model.raised())
        assert state_of(model) != before
        assert why_not(model) is None
    assert state_of(model) == before
    model.model.config.rms_norm_eps = 0.5
    assert state_of(model) != before
    model.model.train()
    assert "training mode" in str(why_not(model))


def test_refusals_say_what_to_do() -> None:
    model = make("llama", "float32")
    with pytest.raises(ConfigError, match="Did you mean 'captured'"):
        tr.KVCache(model, "static", step="capture")
    with pytest.raises(ConfigError, match="use cache='static' or 'rolling'"):
        tr.KVCache(model, step="captured")
    with pytest.raises(UnsupportedModelError, match=r"cannot be captured as a graph.*use step='eager'"):
        captured(make("llama-rope", "float32")).generate(ROWS[0], 3)
    whole = tr.load(torch.compile(make("llama", "float32").model))
    with pytest.raises(UnsupportedModelError, match="is compiled already"):
        captured(whole)
