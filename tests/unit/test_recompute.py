"""One precision up, Recompute leaves out every second forward where that is proved harmless, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import twinrun as tr
from tests.support.zoo import make
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import get_fault


def ids_for(model: tr.Model, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(3, model.vocab_size, (count,), generator=generator).tolist()


@contextmanager
def counting(model: tr.Model) -> Iterator[list[int]]:
    """Lengths of the forwards inside the block."""
    lengths: list[int] = []
    body = model.layout.layers[0]
    hook = body.register_forward_hook(lambda _m, args, _out: lengths.append(args[0].shape[1]))
    yield lengths
    hook.remove()


def raised_logits(runner: tr.Recompute, row: list[int], start: int) -> torch.Tensor:
    with runner.raised():
        scores = runner.score(row, start)
        return scores.logits.rows(0, scores.logits.num_rows)


def every_prefix(runner: tr.Recompute, row: list[int], start: int) -> torch.Tensor:
    """The oracle of the oracle: each prefix by itself through the model's own forward."""
    with torch.inference_mode(), runner.raised():
        ends = range(start, len(row) + 1)
        return torch.cat([runner.module(torch.tensor([row[:end]])).logits[0, -1:] for end in ends])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize(("length", "start"), [(20, 11), (21, 11), (12, 12), (12, 11), (9, 1)])
def test_half_of_the_forwards_give_the_same_rows(family: str, length: int, start: int) -> None:
    model = make(family, "bfloat16")
    runner, row = tr.Recompute(model), ids_for(model, length)
    with counting(model) as low:
        runner.score(row, start)
    with counting(model) as up:
        got = raised_logits(runner, row, start)
    assert low == list(range(start, length + 1))
    assert up == sorted({start, *range(length, start, -2)})
    want = every_prefix(runner, row, start)
    error = float((got - want).abs().max())
    assert error <= 64 * torch.finfo(torch.float32).eps * float(want.abs().max())
    if length > start:  # the control: rows shifted by one are no rounding
        assert float((got[1:] - want[:-1]).abs().max()) > 1e4 * max(error, 1e-7)


def test_tables_that_switch_with_the_length_are_seen_and_nothing_is_left_out() -> None:
    model = make("phi3-long", "float32")
    switch = model.config.rope_parameters["original_max_position_embeddings"]
    runner, row = tr.Recompute(model), ids_for(model, switch + 7)
    with counting(model) as lengths:
        got = raised_logits(runner, row, switch - 6)
    assert set(range(switch - 6, switch + 8)) <= set(lengths)
    torch.testing.assert_close(got, every_prefix(runner, row, switch - 6), rtol=0, atol=1e-11)


def test_lost_causality_is_seen_and_nothing_is_left_out() -> None:
    model = make("llama", "float32")
    fault = get_fault("causal-mask-dropped")
    row = ids_for(model, 20)
    candidate = candidate_for(fault, model)
    with fault.planted(candidate), counting(candidate.model) as lengths:
        raised_logits(tr.Recompute(candidate.model), row, 10)
    assert set(range(10, 21)) <= set(lengths)


def test_routes_of_left_out_prefixes_are_those_of_the_next_longer_one() -> None:
    model = make("qwen3moe", "float32")
    runner, row = tr.Recompute(model), ids_for(model, 16)
    with runner.raised():
        found = runner.score(row, 9).routes
    assert found is not None
    assert [e.shape[1] for e in found.experts] == list(range(9, 17))
    with torch.inference_mode():
        alone = runner.score(row[:15], 15).routes
    assert alone is not None
    assert torch.equal(found.experts[-2], alone.experts[0])
