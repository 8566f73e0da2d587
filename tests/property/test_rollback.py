"""Any sequence of feeding and taking back ends in the scores of the text that is left."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import twinrun as tr
from tests.support.zoo import make
from twinrun.errors import ConfigError, ShapeError

WINDOW = 24
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("llama", {}),
    "static": ("llama", {}),
    "prefix": ("gpt2", {}),
    "offloaded": ("phi", {}),
    "sliding": ("mistral", {}),
    "rolling": ("llama", {"window": WINDOW}),
}
# Worst gap of a logit in float64 over 1,000 random sequences of all kinds: 4.6e-15, on two CPU cores, 2026-11.
BOUND = 1e-12
moves = st.lists(
    st.one_of(st.lists(st.integers(3, 319), min_size=1, max_size=3), st.integers(1, 4)),
    min_size=1,
    max_size=6,
)


@functools.cache
def model_of(family: str) -> tr.Model:
    return make(family)


def play(runner: tr.KVCache, prompts: list[list[int]], sequence: list[list[int] | int]) -> float:
    """Feed lists and take numbers back; return the largest gap between any logits and those of the text by itself."""
    texts, worst = [list(p) for p in prompts], 0.0
    plain = tr.SinglePass(runner.model)
    with runner.raised():
        run = runner.open(prompts, room=20)
        for move in sequence:
            if isinstance(move, int):
                count = min(move, min(map(len, texts)) - 1)
                run.roll_back(count)
                texts = [t[: len(t) - count] for t in texts]
                assert run.tokens == texts
                continue
            fed = run.feed([move for _ in texts])
            texts = [t + move for t in texts]
            for row, text in enumerate(texts):
                right = plain.score(text, len(text) - len(move) + 1).logits.rows(0, 99)
                worst = max(worst, float((fed[row] - right).abs().max()))
    return worst


@pytest.mark.parametrize("kind", KINDS)
@given(sequence=moves, prompt=st.lists(st.integers(3, 319), min_size=2, max_size=4))
@settings(max_examples=12, deadline=None)
def test_feeding_and_taking_back(kind: str, sequence: list[list[int] | int], prompt: list[int]) -> None:
    family, options = KINDS[kind]
    sequence = within(
        sequence, len(prompt), 15
    )  # mistral's window is 16, and nothing may slide out of it here
    assert play(tr.KVCache(model_of(family), kind, **options), [prompt], sequence) < BOUND


def within(sequence: list[list[int] | int], length: int, most: int) -> list[list[int] | int]:
    """Leave out what would make the text longer than `most`."""
    kept: list[list[int] | int] = []
    for move in sequence:
        after = max(1, length - move) if isinstance(move, int) else length + len(move)
        if after <= most:
            kept.append(move)
            length = after
    return kept


@pytest.mark.parametrize("kind", ["dynamic", "static", "rolling"])
def test_rows_of_a_padded_batch_are_taken_back_together(kind: str) -> None:
    family, options = KINDS[kind]
    prompts, sequence = [[5, 6, 7], [9, 200, 31, 8, 77]], [[11, 12], 1, [13], 3, [14, 15], [16]]
    assert play(tr.KVCache(model_of(family), kind, **options), prompts, sequence) < BOUND


def test_a_cache_that_takes_nothing_back_breaks_that_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from twinrun.runners import cached

    monkeypatch.setattr(cached, "roll_back", lambda cache, count: None)
    assert play(tr.KVCache(model_of("llama")), [[5, 6, 7]], [[11, 12], 2, [13]]) > 1e-3


@pytest.mark.parametrize(
    ("kind", "family", "options", "why"),
    [
        ("rolling", "llama", {"window": 4}, "a ring of 4 slots was fed 6 tokens and has wrapped"),
        ("rolling", "gpt2", {"window": 4}, "has wrapped"),
        ("sliding", "mistral", {}, "a window of 16 was fed 18 tokens"),
        ("static", "mistral", {}, "a window of 16 was fed 18 tokens"),
        ("quantized", "llama", {}, "quantised keys were rounded"),
    ],
)
def test_a_cache_that_cannot_says_why_and_stays_as_it_was(
    kind: str, family: str, options: dict[str, Any], why: str
) -> None:
    prompt = [5, 6, 7, 8] if options or kind == "quantized" else [5] * 16
    run = tr.KVCache(model_of(family), kind, **options).open(prompt, room=9)
    run.feed([[9, 10]])
    lengths = run.cache_lengths
    with pytest.raises(ConfigError, match=why):
        run.roll_back(1)
    assert run.cache_lengths == lengths
    assert run.tokens == [[*prompt, 9, 10]]


def test_bad_requests() -> None:
    run = tr.KVCache(model_of("llama")).open([[5, 6, 7], [8, 9]], room=3)
    with pytest.raises(ConfigError, match="2 tokens to take back of 2; give 0 to 1"):
        run.roll_back(2)
    with pytest.raises(ShapeError, match=r"2 rows are under way and \[1\] tokens were given"):
        run.feed([[4]])
    with pytest.raises(ShapeError, match="give every row as many"):
        run.feed([[4], [5, 6]])
    with pytest.raises(ConfigError, match="no room for 4 more tokens"):
        run.feed([[4] * 4, [5] * 4])
    assert torch.equal(run.feed([[4], [4]])[:, -1], run.logits)
