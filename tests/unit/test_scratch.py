"""Memory and views that a packed step makes once: results stay, runs do not share, blocks are what they seem."""

from __future__ import annotations

import pytest
import torch

import twinrun as tr
from tests.support.zoo import make
from twinrun.runners import scratch
from twinrun.runners.gathered import block_of
from twinrun.runners.room import Room

ROW = [5, 9, 200, 31, 8, 77, 12]


def packed(model: tr.Model, cache: str = "static", **options: int) -> tr.KVCache:
    return tr.KVCache(model, cache, step="packed", **options)


def is_kept() -> bool:
    """Whether logits of one step are the same after the next."""
    run = packed(make("gpt-pre", "float32")).open(ROW, room=4)
    run.feed([[3]])
    first = run.feed([[4]])
    before = first.clone()
    run.feed([[5]])
    return torch.equal(first, before)


def test_what_a_step_returned_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: were results taken for what stays inside the step, the next step would write over them."""
    assert is_kept()
    monkeypatch.setattr(scratch, "_leaves", lambda _node: False)
    assert not is_kept()


def test_two_runs_in_turns_do_not_meet() -> None:
    model = make("gpt-pre", "float32")
    fast = packed(model)
    runs = [fast.open(row, room=6) for row in (ROW, ROW[::-1])]
    plain = [tr.KVCache(model).open(row, room=6) for row in (ROW, ROW[::-1])]
    for token in (4, 250, 17, 3):
        for run, want in zip(runs, plain, strict=True):
            torch.testing.assert_close(run.feed([[token]]), want.feed([[token]]), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("cache", "options"), [("static", {}), ("rolling", {"window": 8})])
def test_views_of_all_layers_are_named_together(cache: str, options: dict[str, int]) -> None:
    """Control: layers of a cache that lie apart are named one by one, and write the same text."""
    sources, tokens = [], []
    for is_apart in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if is_apart:
                patch.setattr(
                    Room, "part", lambda _s, _n, like, k: like.new_zeros(*like.shape[:2], k, like.shape[3])
                )
            fast = packed(make("llama", "float32"), cache, **options)
            run = fast.generate(ROW, 20, stop_at_eos=False)
        assert run.settings.get("step_fallback") is None, run.settings
        assert fast._steps is not None
        sources.append(next(iter(fast._steps.store.graphs.values()))[0].flat.source)
        tokens.append(run.tokens)
    assert ["unbind" in source for source in sources] == [True, False]
    assert sources[0].count("narrow") < sources[1].count("narrow")
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(("family", "writes"), [("gpt-pre", 1), ("llama", 2)])
def test_keys_and_values_of_one_product_are_written_by_one_copy(family: str, writes: int) -> None:
    """Control: llama turns its keys, so they do not lie behind its values. Both write what the own forward writes."""
    model = make(family, "float32")
    fast = packed(model)
    runs = [runner.open(ROW, room=6) for runner in (fast, tr.KVCache(model))]
    for token in (4, 250, 17, 3):
        got, want = (run.feed([[token]]) for run in runs)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
    caches = [run._state.cache.layers for run in runs]
    for ours, theirs in zip(*caches, strict=True):
        for store in ("keys", "values"):
            kept = getattr(ours, store)[:, :, : len(ROW) + 4]
            torch.testing.assert_close(kept, getattr(theirs, store), atol=2e-6, rtol=0)
    assert fast._steps is not None
    body = next(iter(fast._steps.store.graphs.values()))[0].flat.source.split("def step")[1]
    assert body.count("copy__default(") == writes * len(caches[0])


def test_a_block_is_its_parts_in_order() -> None:
    whole = torch.arange(24.0).view(4, 1, 2, 3, 1)
    found = block_of(list(whole))
    assert found is not None
    assert torch.equal(found, whole)
    assert found.data_ptr() == whole.data_ptr()
    assert block_of([whole[1], whole[0]]) is None
    assert block_of([whole[0], whole[2]]) is None
    assert block_of([whole[0], whole[1].clone()]) is None
    assert block_of([whole[0], whole[1][:, :1]]) is None


def test_room_gives_parts_of_another_form_memory_of_their_own() -> None:
    room, like = Room(2), torch.ones(1, 2, 5, 4)
    first, second = room.part(0, like, 8), room.part(1, like[..., :3], 8)
    assert first.shape == (1, 2, 8, 4)
    assert second.shape == (1, 2, 8, 3)
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert not first.any()
    assert not second.any()
