"""A layer without its modules' calls against the layer itself, bit for bit; and all that must send it back there."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from twinrun.models.lean import LeanLayer, tables
from twinrun.models.parts import Slots

WIDTH, ROOM = 32, 21
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def layer_of(family="llama", kv_heads=2, dtype=torch.float32):
    """A layer of random weights, what it is handed, and its rotary tables."""
    torch.manual_seed(5)
    config_of, made = FAMILIES[family]
    config = config_of(
        vocab_size=31, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, is_causal=False, initializer_range=0.3,
    )  # fmt: skip
    model = made(config).eval().to(dtype)
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:
            nn.init.normal_(weight, 1.0, 0.3)
    return model.model


def handed(body, rows, tokens, first=3):
    """Hidden states and rotary tables of tokens at absolute positions."""
    hidden = torch.randn(rows, tokens, WIDTH, dtype=body.norm.weight.dtype)
    at = torch.arange(first, first + tokens).expand(rows, tokens)
    return hidden, body.rotary_emb(hidden, position_ids=at)


def both(body, hidden, rotary, mask=None, at=None):
    """The layer itself and the lean one, with what they wrote; `at` is None without slots."""
    layer, out = body.layers[1], []
    lean = LeanLayer(layer)
    for own in (True, False):
        slots = None if at is None else filled(body, hidden.shape[0])
        if slots is not None:
            slots.at = at
        with torch.inference_mode():
            lean.look()
            if own:
                found = layer(
                    hidden, attention_mask=mask, position_embeddings=rotary, past_key_values=slots,
                    use_cache=slots is not None, is_causal=False,
                )  # fmt: skip
            else:
                found = lean(hidden, tables(rotary), mask, slots)
        out.append((found, slots))
    return out


def filled(body, rows):
    """Slots whose every position holds something."""
    slots = Slots(ROOM)
    draw = torch.Generator().manual_seed(9)
    hidden = torch.randn(rows, ROOM, WIDTH, generator=draw)
    rotary = body.rotary_emb(hidden, position_ids=torch.arange(ROOM).expand(rows, ROOM))
    with torch.inference_mode():
        body.layers[1](
            hidden, position_embeddings=rotary, past_key_values=slots, use_cache=True, is_causal=False
        )
    return slots


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 18])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_layer_bit_for_bit(family, kv_heads, rows, tokens):
    body = layer_of(family, kv_heads)
    hidden, rotary = handed(body, rows, tokens)
    some = torch.stack([torch.randperm(ROOM)[:tokens].sort().values for _ in range(rows)])
    for at in (None, slice(3, 3 + tokens), some):
        (own, kept), (lean, ours) = both(body, hidden, rotary, at=at)
        assert torch.equal(own, lean)
        if at is not None:
            assert torch.equal(kept.keys(1), ours.keys(1))
            assert torch.equal(kept.values(1), ours.values(1))
    _, shifted = handed(body, rows, tokens, first=4)
    (own, _), (lean, _) = both(body, hidden, rotary, at=some)[0], both(body, hidden, shifted, at=some)[1]
    assert not torch.equal(own, lean), "the control: another position"


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_a_mask_reaches_attention(kv_heads):
    body = layer_of(kv_heads=kv_heads)
    hidden, rotary = handed(body, 2, 6)
    mask = torch.rand(2, 1, 6, 6) < 0.7
    mask[..., 0] = True
    (own, _), (lean, _) = both(body, hidden, rotary, mask)
    assert torch.equal(own, lean)
    assert not torch.equal(lean, both(body, hidden, rotary)[1][0]), "the control: no mask"


@contextmanager
def hook(layer, _):
    undo = layer.mlp.up_proj.register_forward_hook(lambda _m, _a, out: out * 2)
    yield
    undo.remove()


@contextmanager
def pre_hook(layer, _):
    undo = layer.register_forward_pre_hook(lambda _m, args: args)
    yield
    undo.remove()


@contextmanager
def global_hook(_layer, _):
    undo = nn.modules.module.register_module_forward_hook(lambda _m, _a, out: None)
    yield
    undo.remove()


@contextmanager
def own_forward(layer, patch):
    patch.setattr(layer.self_attn, "forward", layer.self_attn.forward)
    yield


@contextmanager
def class_forward(_layer, patch):
    patch.setattr(modeling_llama.LlamaAttention, "forward", lambda *_a, **_k: None)
    yield


@contextmanager
def other_rotation(_layer, patch):
    patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_: (q, k))
    yield


@contextmanager
def other_module(layer, patch):
    class Quantised(nn.Linear):
        pass

    patch.setitem(layer.self_attn._modules, "k_proj", Quantised(WIDTH, WIDTH))
    yield


@contextmanager
def twin_module(layer, patch):
    patch.setitem(layer.self_attn._modules, "k_proj", nn.Linear(WIDTH, WIDTH, bias=False).eval())
    yield


@contextmanager
def other_class(layer, patch):
    class Wider(nn.Linear):
        pass

    patch.setattr(layer.mlp.up_proj, "__class__", Wider)
    yield


@contextmanager
def training(layer, _):
    layer.mlp.train()
    yield


@contextmanager
def autocast(_layer, _):
    with torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def a_mode(_layer, _):
    class Looks(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Looks():
        yield


@contextmanager
def gradients(_layer, _):
    with torch.inference_mode(False), torch.enable_grad():
        yield


IN_THE_WAY = [
    hook, pre_hook, global_hook, own_forward, class_forward, other_rotation, other_module, twin_module, other_class,
    training, autocast, a_mode, gradients,
]  # fmt: skip


@pytest.mark.parametrize("what", IN_THE_WAY, ids=lambda f: f.__name__)
def test_whatever_it_would_pass_by_sends_it_back(what, monkeypatch):
    body = layer_of(kv_heads=4)
    hidden, rotary = handed(body, 1, 4)
    lean = LeanLayer(body.layers[0])
    with torch.inference_mode():
        turn = tables(rotary)
        lean.look()
        assert lean(hidden, turn, None, None) is not None, "the control"
        with what(body.layers[0], monkeypatch):
            lean.look()
            assert lean(hidden, turn, None, None) is None


def test_a_hook_that_comes_later_is_seen_at_the_next_call():
    body = layer_of()
    hidden, rotary = handed(body, 1, 4)
    lean = LeanLayer(body.layers[0])
    with torch.inference_mode():
        lean.look()
        turn = tables(rotary)
        with hook(body.layers[0], None):
            assert lean(hidden, turn, None, None) is None
        assert lean(hidden, turn, None, None) is not None


@pytest.mark.parametrize("case", ["bfloat16", "float64", "eager", "not looked", "unknown class"])
def test_what_is_not_known_is_left_to_the_layer(case):
    body = layer_of("qwen2", dtype=getattr(torch, case, torch.float32) if "float" in case else torch.float32)
    if case == "eager":
        body.config._attn_implementation = "eager"
    if case == "unknown class":
        body.layers[0].__class__ = type("Other", (Qwen2DecoderLayer,), {})
    hidden, rotary = handed(body, 1, 4)
    lean = LeanLayer(body.layers[0])
    with torch.inference_mode():
        if case != "not looked":
            lean.look()
        assert lean(hidden, tables(rotary), None, None) is None


def test_weights_are_read_anew():
    body = layer_of()
    hidden, rotary = handed(body, 1, 4)
    lean = LeanLayer(body.layers[0])
    with torch.inference_mode():
        lean.look()
        turn = tables(rotary)
        before = lean(hidden, turn, None, None)
        layer = body.layers[0]
        layer.mlp.up_proj.weight = nn.Parameter(layer.mlp.up_proj.weight * 2)
        after = lean(hidden, turn, None, None)
        own = layer(hidden, position_embeddings=rotary, is_causal=False)
    assert not torch.equal(before, after)
    assert torch.equal(after, own)
