"""A head that was seen making the logits needs no second product; whatever it did not make is asked or refused."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from tests.support.zoo import make
from twinrun.models.model import Model
from twinrun.runners.watched_head import watching

ROW = [5, 9, 200, 31, 8, 77, 12]


def products(model: Model, runner: tr.SinglePass) -> tuple[int, str]:
    """Calls of the head while a text is scored, and how the logits came about."""
    calls = []
    handle = model.layout.head.register_forward_hook(lambda *_: calls.append(1))
    path = runner.score(ROW, 3).path
    handle.remove()
    return len(calls), path


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "granite", "gpt-pre"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_product_a_forward_and_the_same_scores(family: str, dtype: str) -> None:
    model = make(family, dtype)
    assert products(model, tr.SinglePass(model)) == (1, "streamed from hidden states")
    found = tr.SinglePass(model).score(ROW, 3).logits
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ROW]), logits_to_keep=5).logits[0]
    torch.testing.assert_close(found.rows(0, 5), hidden, rtol=2e-2, atol=1e-4)


def test_logits_that_were_changed_behind_the_head_are_not_taken_for_its_own(monkeypatch) -> None:
    model = make("llama")
    right = model.model.forward

    def wrong(*args, **kwargs):
        out = right(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(model.model, "forward", wrong)
    found = tr.SinglePass(model).score(ROW, 3)
    assert found.path == "the model's own forward"


def test_what_it_says_of_rows_it_did_not_see() -> None:
    model = make("llama")
    hidden = torch.randn(1, 1, 64)
    with watching(model) as head:
        logits = model.logits_of(hidden)
        assert head.made(hidden, logits)
        assert not head.made(hidden + 1e-3, logits)
        assert not head.made(hidden, logits.nextafter(logits + 1))
        assert not head.made(hidden.double(), logits.double())
        model.logits_of(hidden)
        assert not head.made(hidden, logits)  # twice: which call made it is not known
        head.forget()
        assert not head.made(hidden, logits)
    assert not model.layout.head._forward_hooks
