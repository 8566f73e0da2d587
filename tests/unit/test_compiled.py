"""Steps that round elsewhere: packed products and compiled graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import twinrun as tr
from tests.support.zoo import make
from twinrun.runners.captured import close
from twinrun.runners.graphed import GraphedStep
from twinrun.runners.registry import build_runner
from twinrun.runners.steps import Steps

ROWS = [[5, 9, 200, 31, 8, 77, 12], [44, 3], [17, 99, 250, 6]]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_packed_products_are_the_same_to_rounding(family: str) -> None:
    model = make(family, "bfloat16")
    fast = build_runner("kv-cache:static+packed", model)
    verdict = tr.verify(tr.Recompute(model), fast, [list(range(3, 40))])
    assert verdict.passed, verdict.reason
    assert verdict.paths["candidate"].endswith("packed step")
    graph = next(iter(fast._steps.store.graphs.values()))[0]
    products = sum(graph.flat.source.count(f"mv_{kind}(") for kind in ("out", "default"))
    assert products >= 3 * 4 + 1  # four in each layer at least, and the head


def test_packed_products_are_left_alone_in_a_batch() -> None:
    half = make("gpt2", "bfloat16")
    run = tr.KVCache(half, "static", step="packed").generate(ROWS, 6, stop_at_eos=False)
    assert run.tokens == tr.KVCache(half).generate(ROWS, 6, stop_at_eos=False).tokens


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_weight_that_was_copied_is_copied_again(is_replaced: bool) -> None:
    """GPT-2's `[in, out]` weights are turned once; a change of the original must reach the copy."""
    model = make("gpt2", "bfloat16")
    fast = tr.KVCache(model, "static", step="packed")
    row = list(range(3, 30))
    before = fast.score(row, 5).logits.rows(0, 99)
    part = model.model.transformer.h[1].mlp.c_fc
    with torch.no_grad():
        if is_replaced:
            part.weight = nn.Parameter(part.weight * 2)
        else:
            part.weight.mul_(2)
    got, want = fast.score(row, 5), tr.KVCache(model).score(row, 5)
    assert got.path.endswith("packed step")
    assert close(got.logits.rows(0, 99), want.logits.rows(0, 99))
    assert not close(got.logits.rows(0, 99), before)


def test_close_is_rounding_and_no_more() -> None:
    want = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    assert close(want * (1 + 8 * torch.finfo(torch.float32).eps), want)
    assert not close(want + 1e-4, want)
    assert not close(torch.full_like(want, float("nan")), want)


@pytest.mark.parametrize("family", ["llama", "gpt-pre"])
def test_a_step_of_fixed_shapes_is_the_same_to_rounding(family: str) -> None:
    """What a CUDA graph records; here it runs plainly."""
    model = make(family, "float32")
    fast = tr.KVCache(model, "static", step="compiled")
    fast._steps = Steps(GraphedStep, model)
    for prompt in (ROWS[0], ROWS):
        run = fast.generate(prompt, 20, stop_at_eos=False)
        assert run.settings.get("step_fallback") is None, run.settings
        assert run.settings["steps_replayed"] == 19
        assert run.tokens == tr.KVCache(model).generate(prompt, 20, stop_at_eos=False).tokens
    row = list(range(3, 30))
    got, want = (r.score(row, 5).logits.rows(0, 99) for r in (fast, tr.KVCache(model)))
    assert close(got, want)
    assert not close(got.roll(1, 0), want)


def test_a_step_of_fixed_shapes_leaves_windows_to_the_own_forward() -> None:
    model = make("mistral", "float32")
    fast = tr.KVCache(model, "static", step="compiled")
    fast._steps = Steps(GraphedStep, model)
    run = fast.generate(ROWS[0], 20, stop_at_eos=False)
    assert "no window" in run.settings["step_fallback"]
    assert run.tokens == tr.KVCache(model).generate(ROWS[0], 20, stop_at_eos=False).tokens


@pytest.mark.slow
def test_a_compiled_step_writes_the_same_text_and_passes_its_verdict() -> None:
    model = make("llama", "float32")
    fast = tr.KVCache(model, "static", step="compiled")
    run = fast.generate(ROWS[0], 24, stop_at_eos=False)
    assert run.tokens == tr.KVCache(model).generate(ROWS[0], 24, stop_at_eos=False).tokens
    assert run.settings["steps_replayed"] == 23
    assert run.settings["compile_seconds"] > 0
    assert tr.verify(tr.Recompute(model), fast, [list(range(3, 30))]).passed
    with torch.no_grad():
        model.model.model.layers[1].self_attn.v_proj.weight.mul_(1.05)
    row = list(range(3, 30))
    got, want = fast.score(row, 5), tr.KVCache(model).score(row, 5)
    assert got.path.endswith("compiled step")
    assert close(got.logits.rows(0, 99), want.logits.rows(0, 99))
