"""Rows that have ended leave the batch of a free run: the others' tokens stay, and forwards get smaller."""

from __future__ import annotations

from typing import Any

import pytest

import twinrun as tr
from twinrun.errors import ConfigError
from twinrun.tasks.arithmetic import problem

PROMPTS = [problem(i).question for i in range(6)]


def widths(
    model: tr.Model, runner: tr.KVCache, prompts: list[list[int]], **settings: Any
) -> tuple[Any, list[int]]:
    """A run, and the rows of each of its forwards."""
    seen: list[int] = []
    table = model.core.get_input_embeddings()
    handle = table.register_forward_hook(lambda _m, _a, out: seen.append(out.shape[0]))
    try:
        return runner.generate(prompts, 120, **settings), seen
    finally:
        handle.remove()


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 5}])
def test_the_tokens_are_those_of_the_whole_batch_and_forwards_shrink(expert, settings):
    prompts = [expert.chat(text) for text in PROMPTS]
    plain, whole = widths(expert, tr.KVCache(expert), prompts, **settings)
    found, fewer = widths(expert, tr.KVCache(expert, drop_finished=True), prompts, **settings)
    assert (found.tokens, found.finish, found.texts) == (plain.tokens, plain.finish, plain.texts)
    assert set(whole) == {6}
    assert fewer[0] == 6
    assert fewer == sorted(fewer, reverse=True)
    assert fewer[-1] < 4
    gaps = [
        abs(a - b)
        for x, y in zip(found.steps, plain.steps, strict=True)
        for a, b in zip(x.logprobs, y.logprobs, strict=True)
        if a is not None and b is not None
    ]
    assert max(gaps) < 1e-4


def test_equal_prompts_without_padding_shrink_too(expert):
    prompts = [expert.chat(PROMPTS[0])] * 2 + [[*expert.chat(PROMPTS[0])[:-1], 7]]
    runs = [tr.KVCache(expert, drop_finished=drop).generate(prompts, 60).tokens for drop in (False, True)]
    assert runs[0] == runs[1]


def test_a_wrong_choice_of_rows_would_be_seen(expert, monkeypatch):
    """The control: keeping the wrong row's cache changes the tokens."""
    from twinrun.runners.cached import CachedForward

    right = CachedForward.keep
    prompts = [expert.chat(text) for text in PROMPTS]
    plain = tr.KVCache(expert).generate(prompts, 120)
    monkeypatch.setattr(CachedForward, "keep", lambda self, rows: right(self, [max(0, r - 1) for r in rows]))
    assert tr.KVCache(expert, drop_finished=True).generate(prompts, 120).tokens != plain.tokens


@pytest.mark.parametrize("options", [{"cache": "static"}, {"cache": "static", "step": "captured"}])
def test_only_a_cache_that_can_leave_rows_out_takes_it(expert, options):
    with pytest.raises(ConfigError, match="drop_finished needs cache='dynamic'"):
        tr.KVCache(expert, drop_finished=True, **options)
