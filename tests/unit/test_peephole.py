"""Stacked products and flat activations of a packed step: fewer calls, the same numbers, seen changes, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import twinrun as tr
from tests.support.zoo import make
from twinrun.runners import peephole
from twinrun.runners.captured import close

ROW = [5, 9, 200, 31, 8, 77, 12]


def packed(model: tr.Model) -> tr.KVCache:
    return tr.KVCache(model, "static", step="packed")


def source_of(runner: tr.KVCache) -> str:
    assert runner._steps is not None
    return next(iter(runner._steps.store.graphs.values()))[0].flat.source


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt-pre", "gpt-post", "bloom", "cohere"])
def test_every_family_writes_the_same_text(family: str) -> None:
    model = make(family, "float32")
    want, got = (r.generate(ROW, 24, stop_at_eos=False) for r in (tr.KVCache(model), packed(model)))
    assert got.settings.get("step_fallback") is None, got.settings
    assert got.tokens == want.tokens
    assert [s.logprobs for s in got.steps] == [pytest.approx(s.logprobs, abs=1e-4) for s in want.steps]


def test_products_of_one_vector_are_one_and_rows_are_flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: with no size small enough, nothing is stacked."""
    counts = []
    for limit in (peephole.MAX_STACKED_BYTES, 0):
        monkeypatch.setattr(peephole, "MAX_STACKED_BYTES", limit)
        model = make("llama", "float32")
        fast = packed(model)
        fast.generate(ROW, 3, stop_at_eos=False)
        source, layers = source_of(fast), model.model.config.num_hidden_layers
        counts.append(source.count("mv_out(") + source.count("mv_default("))
        assert ("as_strided" in source) == bool(limit)
        assert source.count("reshape_default(") < 12 * layers
    assert counts == [4 * layers + 1, 7 * layers + 1]


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("name", ["q_proj", "v_proj"])
def test_a_change_of_a_stacked_weight_is_seen(name: str, is_replaced: bool) -> None:
    """Each member of a stack counts, the first as well as the last."""
    model = make("llama", "float32")
    fast, row = packed(model), list(range(3, 30))
    before = fast.score(row, 5).logits.rows(0, 99)
    part = getattr(model.model.model.layers[1].self_attn, name)
    with torch.no_grad():
        if is_replaced:
            part.weight = nn.Parameter(part.weight * 2)
        else:
            part.weight.mul_(2)
    got, want = fast.score(row, 5), tr.KVCache(model).score(row, 5)
    assert got.path.endswith("packed step")
    assert close(got.logits.rows(0, 99), want.logits.rows(0, 99))
    assert not close(got.logits.rows(0, 99), before)


def test_a_wrong_order_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_(*parts: Tensor) -> Tensor:
        return torch.cat(parts[::-1])

    reversed_.__module__ = peephole.__name__  # run before the first step, as the right one is
    monkeypatch.setattr(peephole, "stacked", reversed_)
    model = make("llama", "float32")
    run = packed(model).generate(ROW, 8, stop_at_eos=False)
    assert "packed step is off by" in str(run.settings.get("step_fallback"))
    assert run.tokens == tr.KVCache(model).generate(ROW, 8, stop_at_eos=False).tokens
