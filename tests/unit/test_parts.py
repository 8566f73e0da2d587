"""A model run piece by piece against its own forward; slots written anywhere, attended to everywhere."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from twinrun.errors import UnsupportedModelError
from twinrun.models.lean import tables
from twinrun.models.model import Model
from twinrun.models.parts import Parts, Slots

WIDTH = 14


def bidirectional(family: type = LlamaConfig, kv_heads: int = 2) -> Model:
    """Random weights, large enough that every position matters to every other."""
    torch.manual_seed(3)
    config = family(
        vocab_size=53, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=64, is_causal=False, initializer_range=0.3,
    )  # fmt: skip
    made = LlamaForCausalLM(config) if family is LlamaConfig else Qwen2ForCausalLM(config)
    return Model(made.eval())


@pytest.fixture
def ids():
    return torch.randint(0, 53, (2, WIDTH), generator=torch.Generator().manual_seed(0))


def places(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
def test_all_pieces_are_the_forward_bit_for_bit(family, kv_heads, ids):
    model = bidirectional(family, kv_heads)
    parts = Parts(model)
    with torch.inference_mode():
        own = model.model(input_ids=ids, use_cache=False).logits
        assert torch.equal(parts.logits(parts.forward(ids, places(ids))), own)
        kept = parts.logits(parts.forward(ids, places(ids), slots=Slots(WIDTH)))
        assert torch.equal(kept, own), "keys and values in slots are the same keys and values"
        model.model.config.is_causal = True
        assert not torch.equal(model.model(input_ids=ids, use_cache=False).logits, own), "the control"


def test_any_unchanged_positions_computed_again_say_the_same(ids):
    parts = Parts(bidirectional())
    picked = torch.tensor([[1, 5, 6, 12], [0, 2, 9, 13]])
    with torch.inference_mode():
        slots = Slots(WIDTH)
        full = parts.logits(parts.forward(ids, places(ids), slots=slots))
        want = full.gather(1, picked[..., None].expand(-1, -1, 53))
        again = parts.logits(parts.forward(ids.gather(1, picked), picked, slots=slots, at=picked))
        torch.testing.assert_close(again, want, rtol=0, atol=2e-5 * float(full.abs().max()))
        moved = parts.logits(
            parts.forward(ids.gather(1, picked), picked - picked[:, :1], slots=slots, at=picked)
        )
        assert float((moved - want).abs().max()) > 0.01 * float(full.abs().max()), (
            "block-local positions are seen"
        )


def test_a_padded_row_is_the_row_alone(ids):
    parts = Parts(bidirectional())
    short = ids[:1, 4:]
    both = torch.cat([ids[1:], torch.cat([torch.full((1, 4), 7), short], 1)])
    real = torch.ones(2, WIDTH, dtype=torch.bool)
    real[1, :4] = False
    positions = (real.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        alone = parts.logits(parts.forward(short, places(short)))
        padded = parts.logits(parts.forward(both, positions, mask=real[:, None, None]))[1:, 4:]
        torch.testing.assert_close(padded, alone, rtol=0, atol=2e-5 * float(alone.abs().max()))
        seen = parts.logits(parts.forward(both, positions))[1:, 4:]
        assert float((seen - alone).abs().max()) > 0.01 * float(alone.abs().max()), "attended padding is seen"


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
def test_keys_and_values_alone_are_those_that_the_layer_writes(family, ids):
    parts = Parts(bidirectional(family))
    with torch.inference_mode():
        hidden, rotary = parts.embed(ids), parts.rotary(parts.embed(ids), places(ids))
        whole, alone = Slots(WIDTH), Slots(WIDTH)
        parts.layer(0, hidden, rotary, None, whole)
        assert parts.write(0, hidden, rotary, alone)
        assert torch.equal(alone.keys(0), whole.keys(0))
        assert torch.equal(alone.values(0), whole.values(0))
        parts.write(0, hidden, parts.rotary(hidden, places(ids) + 1), alone)
        assert not torch.equal(alone.keys(0), whole.keys(0)), "the control: another position"


def test_a_layer_that_is_not_known_is_left_alone(ids):
    class Other(LlamaDecoderLayer):
        pass

    model = bidirectional()
    for layer in model.model.model.layers:
        layer.__class__ = Other
    parts, slots = Parts(model), Slots(WIDTH)
    with torch.inference_mode():
        hidden = parts.embed(ids)
        assert not parts.write(0, hidden, parts.rotary(hidden, places(ids)), slots)
    assert slots.layers == 0


def test_what_goes_nowhere_is_never_read(ids):
    parts = Parts(bidirectional())
    with torch.inference_mode():
        slots = Slots(WIDTH)
        parts.forward(ids, places(ids), slots=slots)
        twin = slots.copy()
        picked = torch.tensor([[3, 4], [8, slots.nowhere]])
        tokens = torch.tensor([[1, 2], [9, 40]])
        parts.forward(tokens, picked, slots=slots, at=picked)
        for layer in range(parts.num_layers):
            changed = (slots.keys(layer) != twin.keys(layer)).any(-1).any(1)
            assert changed.nonzero().tolist() == [[0, 3], [0, 4], [1, 8]]
    assert slots.layers == parts.num_layers
    assert slots.bytes() == 2 * 3 * 2 * 2 * (WIDTH + 1) * 8 * 4


def test_a_model_without_rotary_positions_is_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=53, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    with pytest.raises(UnsupportedModelError, match="piece by piece: its body has no"):
        Parts(Model(gpt2.eval()))


def test_a_pre_hook_that_only_looks_is_called_and_stops_nothing():
    """The trace's own: what it is shown is what the layer's call would have shown it."""
    parts = Parts(bidirectional())
    layer, seen = parts._layers[0], []

    def look(_layer, args, kwargs):
        seen.append((args[0], kwargs))

    look.only_looks = True
    ids = torch.tensor([[3, 4, 5]])
    with torch.inference_mode():
        hidden = parts.embed(ids)
        rotary = parts.rotary(hidden, torch.arange(3)[None])
        plain = parts.layer(0, hidden, rotary, None, None)
        undo = layer.register_forward_pre_hook(look, with_kwargs=True)
        shown = parts.layer(0, hidden, rotary, None, None)
        layer(hidden, attention_mask=None, position_embeddings=rotary, past_key_values=None,
              use_cache=False, is_causal=False)  # fmt: skip
        assert parts._lean[0](hidden, tables(rotary), None, None) is not None
        undo.remove()
        look.only_looks = False
        layer.register_forward_pre_hook(look, with_kwargs=True)
        assert parts._lean[0](hidden, tables(rotary), None, None) is None, "the control"
    assert torch.equal(plain, shown)
    (by_lean, given), (by_layer, theirs) = seen
    assert by_lean is by_layer is hidden
    assert given == theirs
