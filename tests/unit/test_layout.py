"""Parts of a model are found by watching it, and what cannot be explained is not streamed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import twinrun as tr
from tests.conftest import fingerprint
from tests.support.zoo import make
from twinrun.errors import UnsupportedModelError
from twinrun.models.layout import find_layout
from twinrun.models.tail import Tail


@pytest.mark.parametrize(
    ("family", "tail"),
    [
        ("llama", Tail()),
        ("gemma2", Tail(softcap=30.0)),
        ("cohere", Tail(multiply=0.0625)),
        ("granite", Tail(divide=4.0)),
    ],
)
def test_what_follows_the_head_is_found(family: str, tail: Tail) -> None:
    layout = make(family, "float32").layout
    assert layout.streams
    assert layout.tail == tail
    assert len(layout.layers) == 3


def test_finding_leaves_no_trace(shared_llama: tr.Model) -> None:
    before = fingerprint(shared_llama.model)
    find_layout(shared_llama.model)
    assert fingerprint(shared_llama.model) == before


def test_an_unknown_tail_is_served_by_the_models_own_forward() -> None:
    model = make("llama", "float32")
    plain = type(model.model).forward

    def odd(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.logits = out.logits.sin() * 3
        return out

    patched = type("OddForCausalLM", (type(model.model),), {"forward": odd})
    model.model.__class__ = patched
    odd_model = tr.load(model.model)
    assert odd_model.layout.why_not is not None
    scores = tr.SinglePass(odd_model).score([1, 2, 3, 4], 1)
    assert scores.path == "the model's own forward"
    with torch.inference_mode():
        want = odd_model.model(torch.tensor([[1, 2, 3, 4]])).logits[0]
    assert torch.equal(scores.logits.rows(0, 4), want)


def test_a_forward_patched_after_loading_is_noticed() -> None:
    """The layout was found on the unpatched model; streaming on would hide the patch."""
    model = make("llama", "float32")
    assert model.layout.streams
    plain = model.model.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    runner = tr.KVCache(model)
    clean = runner.score([1, 2, 3, 4], 2).logits.rows(0, 3).clone()
    model.model.forward = doubled
    for side in (runner, tr.SinglePass(model), tr.Recompute(model)):
        scores = side.score([1, 2, 3, 4], 2)
        assert scores.path == "the model's own forward"
        torch.testing.assert_close(scores.logits.rows(0, 3), clean * 2, rtol=1e-5, atol=1e-5)


def test_a_module_that_is_no_causal_lm_is_refused() -> None:
    from transformers import LlamaConfig, LlamaModel

    small = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    body = LlamaModel(small)
    with pytest.raises(UnsupportedModelError, match="load a causal LM"):
        _ = tr.load(body.eval()).layout
    with pytest.raises(UnsupportedModelError, match="no token embedding"):
        _ = tr.load(nn.Linear(3, 3).eval()).layout
