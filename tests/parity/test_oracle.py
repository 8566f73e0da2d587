"""The runners and the raised oracle against a float64 decoder that shares no code with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support import zoo
from tests.support.plain_llama import Sizes, plain_logits

FAMILIES = ("llama", "qwen2", "qwen3")
RUNNERS = ("recompute", *zoo.CANDIDATES)
LENGTHS = ((1, 1), (7, 3), (41, 19))
"""(tokens, of which prompt)"""

# Largest error of a logit over the largest logit, in eps of the computing precision: measured over 20 seeds,
# three families, four runners, three lengths, on two CPU cores, 2026-11. The bound is twice the worst.
MEASURED = {
    ("float32", "as it is"): 9.3,
    ("float32", "raised"): 9.9,
    ("bfloat16", "raised"): 10.7,
}
CONTROL = 1.02


def error_in_eps(
    model: tr.Model, name: str, length: int, start: int, *, is_raised: bool, wrong: str | None = None
) -> float:
    """Worst error of one runner on one row of random ids, relative to the largest logit, in eps."""
    config = model.config
    ids = torch.randint(3, 320, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    sizes = Sizes(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        theta=config.rope_parameters["rope_theta"],
        epsilon=config.rms_norm_eps,
    )
    spoiled = None if wrong is None else {wrong: CONTROL}
    expected = plain_logits(model.core.state_dict(), sizes, ids, spoiled)[start - 1 :]
    found = scored(zoo.runner(name, model), ids, start, is_raised=is_raised)
    assert found.shape == expected.shape
    error = (found.double() - expected).abs().max() / expected.abs().max()
    return float(error) / torch.finfo(found.dtype).eps


def scored(
    runner: tr.SinglePass | tr.KVCache | tr.Recompute, ids: list[int], start: int, *, is_raised: bool
) -> Tensor:
    if not is_raised:
        scores = runner.score(ids, start)
        return scores.logits.rows(0, scores.logits.num_rows)
    with runner.raised() as dtype:
        scores = runner.score(ids, start)
        logits = scores.logits.rows(0, scores.logits.num_rows)
    assert logits.dtype == dtype
    return logits


def bound(dtype: str, is_raised: bool) -> float:
    return 2 * MEASURED[dtype, "raised" if is_raised else "as it is"]


CASES = [("float32", False), ("float32", True), ("bfloat16", True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "is_raised"), CASES)
def test_every_runner_agrees_with_the_plain_decoder(family: str, dtype: str, is_raised: bool) -> None:
    model = zoo.make(family, dtype)
    for name in RUNNERS:
        for length, start in LENGTHS:
            error = error_in_eps(model, name, length, start, is_raised=is_raised)
            assert error <= bound(dtype, is_raised), f"{name}, {length} tokens: {error:.2f} eps"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_the_measured_bound_holds_over_seeds(seed: int) -> None:
    for family in FAMILIES:
        for dtype, is_raised in CASES:
            model = zoo.make(family, dtype, seed)
            for name in RUNNERS:
                error = error_in_eps(model, name, 41, 19, is_raised=is_raised)
                assert error <= bound(dtype, is_raised), f"{family} {dtype} {name}: {error:.2f} eps"


@pytest.mark.parametrize("place", ["scores", "values", "up", "head"])
@pytest.mark.parametrize(("dtype", "is_raised"), CASES)
def test_two_percent_in_one_place_is_refused(place: str, dtype: str, is_raised: bool) -> None:
    model = zoo.make("qwen3", dtype)
    error = error_in_eps(model, "single-pass", 41, 19, is_raised=is_raised, wrong=place)
    assert error > 50 * bound(dtype, is_raised)
