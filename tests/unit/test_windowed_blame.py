"""Blame under windows: where a sliding forward stands, how many keys a ring shows, whose rows are padded."""

from __future__ import annotations

import copy
import random

import pytest
import torch

import twinrun as tr
from tests.support.zoo import make
from twinrun.models.gpt import GPTForCausalLM
from twinrun.models.gpt_config import GPTConfig

WINDOW = 8


def ids(count: int, seed: int = 0) -> tuple[int, ...]:
    pick = random.Random(seed)
    return tuple(pick.randrange(3, 320) for _ in range(count))


CASES = {
    "one row": tr.Case(label="t", rows=(ids(30),), starts=(5,)),
    "a prompt beyond the window": tr.Case(label="t", rows=(ids(30),), starts=(20,)),
    "padded": tr.Case(label="t", rows=(ids(30), ids(19, 1)), starts=(11, 5)),
}


def spoilt(model: tr.Model) -> tr.Model:
    """A copy with one wrong row of one V projection."""
    core = copy.deepcopy(model.core)
    with torch.no_grad():
        core.model.layers[1].self_attn.v_proj.weight[3].mul_(1.5)
    return tr.load(core)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wrong_module_behind_a_ring_is_named(case: tr.Case) -> None:
    model = make("llama")
    found = tr.blame(
        tr.Recompute(model, window=WINDOW), tr.KVCache(spoilt(model), "rolling", window=WINDOW), [case]
    )
    assert (found.kind, found.module) == ("module", "model.layers.1.self_attn.v_proj"), found.sentence


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_ring_that_keeps_one_token_more_is_a_wrong_mask(case: tr.Case) -> None:
    model = make("llama")
    found = tr.blame(
        tr.Recompute(model, window=WINDOW), tr.KVCache(model, "rolling", window=WINDOW + 1), [case]
    )
    assert (found.kind, found.position) == ("mask", WINDOW), found.sentence
    assert "may attend to 9 keys where the reference's sees 8" in found.sentence


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_a_sound_ring_is_not_blamed(family: str, case: tr.Case) -> None:
    model = make(family)
    assert (
        tr.blame(tr.Recompute(model, window=WINDOW), tr.KVCache(model, "rolling", window=WINDOW), [case]).kind
        == "none"
    )


@pytest.mark.parametrize(("window", "kind"), [(WINDOW, "positions"), (16, "module")])
def test_the_first_slide_of_learned_positions_is_named(window: int, kind: str) -> None:
    """Below the table the ring's position ids count on; at its end they agree and old keys are what differs."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 2, "block_size": 16}
    model = tr.load(GPTForCausalLM(GPTConfig(**sizes, initializer_range=0.2)).eval())
    found = tr.blame(
        tr.Recompute(model, window=window), tr.KVCache(model, "rolling", window=window), [CASES["one row"]]
    )
    assert (found.kind, found.position) == (kind, window), found.sentence
    if kind == "positions":
        assert "position id 8 for the token at 8, the reference 7" in found.sentence
    else:
        assert found.module == "model.layers.0.attention"
