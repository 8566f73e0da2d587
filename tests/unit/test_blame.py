"""Blame names the place of what is planted by hand here, and nothing on clean pairs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import twinrun as tr
from tests.support import zoo
from twinrun.errors import ConfigError
from twinrun.faults.fault import broken_copy

ROW = tuple(range(5, 25))
CASE = tr.Case(label="text", rows=(ROW,), starts=(14,))
BATCH = tr.Case(label="batch", rows=(ROW, ROW[:9]), starts=(14, 4))


def scaled(part: nn.Module, factor: float = 1.01):
    return part.register_forward_hook(lambda _m, _a, out: out * factor)


def pair(family: str = "qwen3", dtype: str = "float32"):
    model = zoo.make(family, dtype)
    return tr.Recompute(model), broken_copy(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [tr.SinglePass, tr.KVCache])
@pytest.mark.parametrize(
    "module",
    ["model.layers.1.mlp.up_proj", "model.layers.2.self_attn.k_norm", "model.norm", "model.embed_tokens"],
)
def test_a_module_that_is_off_is_named(dtype, build, module):
    reference, copy = pair(dtype=dtype)
    scaled(copy.core.get_submodule(module))
    found = tr.blame(reference, build(copy), [CASE])
    assert (found.kind, found.module) == ("module", module)
    assert found.error_in <= found.noise < found.error_out
    assert (found.step, found.row) == (0, 0)
    assert found.layer == (int(module.split(".")[2]) if "layers" in module else None)


def test_the_position_is_that_of_the_first_wrong_token():
    reference, copy = pair()

    def late(_part, args, out):
        return torch.cat([out[:, :17], out[:, 17:] * 1.001], dim=1) if out.shape[1] > 17 else out

    copy.core.model.layers[1].mlp.register_forward_hook(late)
    found = tr.blame(reference, tr.SinglePass(copy), [CASE])
    assert (found.module, found.position) == ("model.layers.1.mlp", 17)


def test_a_step_of_decoding_is_named():
    reference, copy = pair()
    _ = copy.layout  # found by a forward of its own
    singles = 0

    def third(_part, _args, out):
        nonlocal singles
        singles = singles + 1 if out.shape[1] == 1 else 0
        return out * 1.001 if singles == 3 else out

    handle = copy.core.model.layers[2].mlp.register_forward_hook(third)
    found = tr.blame(reference, tr.KVCache(copy), [CASE])
    handle.remove()
    assert (found.module, found.step, found.position) == ("model.layers.2.mlp", 3, 16)


def test_two_attention_implementations_and_two_precisions_are_clean():
    reference, copy = pair()
    copy.core.set_attn_implementation("eager")
    assert tr.blame(reference, tr.SinglePass(copy), [CASE, BATCH]).kind == "none"
    _, half = pair()
    half.core.bfloat16()
    found = tr.blame(reference, tr.SinglePass(half), [CASE])
    assert (found.kind, found.precision) == ("none", "bfloat16")
    scaled(half.core.model.layers[1].mlp, 1.2)  # the control: rounding does not hide this
    assert tr.blame(reference, tr.SinglePass(half), [CASE]).module == "model.layers.1.mlp"


def test_a_bug_that_lives_in_the_low_precision_is_found_there():
    reference, copy = pair(dtype="bfloat16")

    def coarse(_part, _args, out):
        return out * 1.3 if out.dtype == torch.bfloat16 else out

    copy.core.model.layers[1].mlp.register_forward_hook(coarse)
    found = tr.blame(reference, tr.SinglePass(copy), [CASE])
    assert (found.module, found.precision) == ("model.layers.1.mlp", "bfloat16")


@pytest.mark.parametrize(("by", "module"), [("layer", "model.layers.1"), ("step", "")])
def test_coarser_looks_name_the_layer_or_the_step(by, module):
    reference, copy = pair()
    scaled(copy.core.model.layers[1].mlp.up_proj)
    found = tr.blame(reference, tr.KVCache(copy), [CASE], by=by)
    assert (found.kind, found.module) == ("module", module)


def test_nan_in_a_module_is_named():
    reference, copy = pair()
    copy.core.model.layers[1].self_attn.o_proj.register_forward_hook(lambda _m, _a, out: out * float("nan"))
    found = tr.blame(reference, tr.SinglePass(copy), [CASE])
    assert found.module == "model.layers.1.self_attn.o_proj"
    assert found.to_json()["error_out"] is None


def test_other_structures_are_not_comparable():
    reference, _ = pair("qwen3")
    found = tr.blame(reference, tr.SinglePass(zoo.make("gpt2", "float32")), [CASE])
    assert found.kind == "not comparable"
    assert "built differently" in found.sentence

    class Engine:
        dtype = "float32"

        def score(self, tokens, start):
            return reference.score(tokens, start)

    assert "shows no module" in tr.blame(reference, Engine(), [CASE]).sentence
    with pytest.raises(ConfigError, match="by must be"):
        tr.blame(reference, tr.SinglePass(reference.model), [CASE], by="head")


def test_a_verdict_carries_the_culprit():
    reference, copy = pair()
    scaled(copy.core.model.layers[2].self_attn.v_proj)
    verdict = tr.verify(reference, tr.KVCache(copy), [CASE])
    assert verdict.verdict == "different"
    assert verdict.culprit.module == "model.layers.2.self_attn.v_proj"
    assert "model.layers.2.self_attn.v_proj" in verdict.blame
    assert "table" not in verdict.to_json()["culprit"]
    assert tr.verify(reference, tr.KVCache(copy), [CASE], explain=False).culprit is None


def test_nothing_is_left_behind_and_the_table_is_whole():
    reference, copy = pair()
    side = tr.KVCache(copy)
    found = tr.blame(reference, side, [BATCH])
    for core in (reference.module, side.module):
        assert not any(p._forward_hooks or p._forward_pre_hooks for p in core.modules())
    assert found.kind == "none"
    assert {line["module"] for line in found.table} >= {"model.embed_tokens", "lm_head", "(model)"}
    assert len(found.to_pandas()) == len(found.table)
