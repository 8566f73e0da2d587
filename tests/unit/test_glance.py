"""The first look of blame: what it settles by itself, and every doubt that it leaves to the full search."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from tests.support import zoo
from twinrun.faults.fault import broken_copy
from twinrun.verify import blame as blame_module
from twinrun.verify import called as called_module
from twinrun.verify.glance import glance

ROW = tuple(range(5, 25))
CASE = tr.Case(label="text", rows=(ROW,), starts=(14,))


def scaled(part, factor=1.01):
    return part.register_forward_hook(lambda _m, _a, out: out * factor)


def pair(dtype="float32", family="qwen3"):
    model = zoo.make(family, dtype)
    return tr.Recompute(model), broken_copy(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [tr.SinglePass, tr.KVCache])
@pytest.mark.parametrize(
    "module", ["model.embed_tokens", "model.layers.1.self_attn", "model.layers.2.mlp.up_proj", "model.norm"]
)
def test_it_settles_what_the_full_search_finds(dtype, build, module, monkeypatch):
    reference, copy = pair(dtype)
    part = copy.core.get_submodule(module)
    part.register_forward_hook(
        lambda _m, _a, out: (out[0] * 1.01, *out[1:]) if isinstance(out, tuple) else out * 1.01
    )
    found = glance(reference, build(copy), CASE, "module")
    monkeypatch.setattr(blame_module, "glance", lambda *_: None)
    full = tr.blame(reference, build(copy), [CASE])
    assert found is not None
    names = ("kind", "module", "layer", "step", "position", "row", "mode", "precision", "case")
    assert [getattr(found, n) for n in names] == [getattr(full, n) for n in names]
    assert found.error_out == pytest.approx(full.error_out, rel=0.3)
    assert found.error_in == 0
    assert found.noise < found.error_out / 100
    assert {line["module"] for line in found.table} >= {"model.layers.0", "model.layers.2", module}


def test_a_sound_pair_settles_nothing():
    reference, copy = pair()
    assert glance(reference, tr.KVCache(copy), CASE, "module") is None


def test_a_difference_that_is_rounding_settles_nothing():
    reference, copy = pair("bfloat16")
    copy.core.set_attn_implementation("eager")
    assert glance(reference, tr.SinglePass(copy), CASE, "module") is None
    scaled(copy.core.model.layers[1].self_attn.v_proj)  # the control for the blame that follows
    assert tr.blame(reference, tr.SinglePass(copy), [CASE]).module == "model.layers.1.self_attn.v_proj"


def test_a_bug_of_the_low_precision_settles_nothing():
    reference, copy = pair("bfloat16")
    copy.core.model.layers[1].mlp.register_forward_hook(
        lambda _m, _a, out: out * 1.3 if out.dtype == torch.bfloat16 else out
    )
    assert glance(reference, tr.SinglePass(copy), CASE, "module") is None


def test_a_bug_in_all_layers_that_the_first_rounds_away_is_named_in_the_first():
    """In layer 0 it is too small for a bit of bfloat16, in layer 2 it is not: the full search names the elder."""
    reference, copy = pair("bfloat16")
    scaled(copy.core.model.layers[0].mlp, 1 + 1e-4)
    scaled(copy.core.model.layers[2].mlp, 1.05)
    side = tr.SinglePass(copy)
    assert glance(reference, side, CASE, "module") is None
    assert tr.blame(reference, side, [CASE]).module == "model.layers.0.mlp"
    _, control = pair("bfloat16")
    scaled(control.core.model.layers[2].mlp, 1.05)
    assert glance(reference, tr.SinglePass(control), CASE, "module").module == "model.layers.2.mlp"


def test_batches_steps_and_long_texts_are_left_to_the_full_search(monkeypatch):
    reference, copy = pair()
    scaled(copy.core.model.layers[1].mlp)
    side = tr.KVCache(copy)
    batch = tr.Case(label="batch", rows=(ROW, ROW[:9]), starts=(14, 4))
    assert glance(reference, side, CASE, "layer").module == "model.layers.1"
    assert glance(reference, side, CASE, "step") is None
    assert glance(reference, side, batch, "module") is None
    monkeypatch.setattr(called_module, "HELD_BYTES", 1000)
    assert glance(reference, side, CASE, "module") is None


def test_hooks_and_weights_are_as_before():
    reference, copy = pair("bfloat16")
    handle = scaled(copy.core.model.layers[1].mlp)
    before = {k: v.clone() for k, v in copy.core.state_dict().items()}
    assert glance(reference, tr.KVCache(copy), CASE, "module") is not None
    handle.remove()
    for core in (reference.module, copy.core):
        assert not any(p._forward_hooks or p._forward_pre_hooks for p in core.modules())
    assert all(torch.equal(v, before[k]) for k, v in copy.core.state_dict().items())
