"""Prefill pruning: cache lengths, generate inside transformers, batches, nothing left behind, clear refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import twinrun as tr
from tests.support.prune import LENGTH, SCHEDULE, batch, cached, full, ids, prefill
from twinrun.errors import ConfigError, NonFiniteError, UnsupportedModelError
from twinrun.models import zoo
from twinrun.models.load import load
from twinrun.prune.named import pruned_named
from twinrun.prune.scorer import Scorer, shipped_scorer
from twinrun.quality.sides import schedule_of

ROWS = [ids(40), ids(17, seed=1), ids(29, seed=2)]
FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
    "gpt2",
    "neox",
    "gpt-pre",
    "bloom",
    "falcon",
    "qwen3moe",
)


def pruned(family: str = "llama", selector: Any = "norm", schedule: Any = None, **more: Any) -> tr.Pruned:
    return tr.Pruned(full(family), selector=selector, schedule=schedule or SCHEDULE, **more)


def generated(p: tr.Pruned, rows: list[list[int]]) -> list[list[int]]:
    """Eight tokens a row by transformers' own generate, with pruning attached."""
    told, mask = batch(rows)
    core: Any = p.model.core
    core.generation_config.eos_token_id = None
    with p.attached():
        found = core.generate(told, attention_mask=mask, max_new_tokens=8, do_sample=False)
    return found[:, told.shape[1] :].tolist()


def expected(length: int, depth: int = 3) -> tuple[int, ...]:
    """Tokens each layer sees, worked out by hand: a share is rounded up, 4 first and 10 % last are always there."""
    least = min(length, 4 + -(-length // 10))
    after = [min(length, max(least, -(-length * percent // 100))) for percent in (70, 45)]
    return (length, *after, *[after[-1]] * (depth - 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_row_is_as_long_as_the_schedule_says(family: str) -> None:
    p = pruned(family)
    for rows in ([ROWS[0]], [ROWS[1]], ROWS):
        lengths = cached(prefill(p, rows))
        assert lengths == tuple(max(of) for of in zip(*(expected(len(r)) for r in rows), strict=True))
        assert p.last is not None
        for number, row in enumerate(rows):
            assert p.last.layer_lengths(number) == expected(len(row))
            kept = p.last.kept_positions(number)
            assert [len(kept[layer]) for layer in SCHEDULE] == list(expected(len(row))[1:])
            for positions in kept.values():
                assert positions == sorted(set(positions))
                assert {0, 1, 2, 3, len(row) - 1} <= set(positions)
                assert set(range(len(row) - -(-len(row) // 10), len(row))) <= set(positions)


def test_an_unpruned_prefill_would_fail_that_test() -> None:
    p = pruned(schedule={1: 1.0})
    assert cached(prefill(p, ROWS)) != tuple(expected(40))


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_of_transformers_and_ours_agree(family: str) -> None:
    p = pruned(family)
    ours = p.generate(ROWS, 8, stop_at_eos=False)
    assert generated(p, ROWS) == ours.tokens
    assert p.generate(ROWS[1], 8, stop_at_eos=False).tokens == ours.tokens[1:2]
    assert ours.steps[0].cache_lengths == (40, 28, 18)
    assert ours.steps[-1].cache_lengths == (47, 35, 25)


def test_unpruned_generate_says_something_else() -> None:
    p = pruned(schedule={1: 0.3})
    plain = tr.KVCache(p.model).generate(ROWS, 8, stop_at_eos=False).tokens
    assert plain != p.generate(ROWS, 8, stop_at_eos=False).tokens


@pytest.mark.parametrize("selector", ["norm", "attention", "random", "recency"])
def test_a_row_of_a_batch_keeps_what_it_keeps_alone(selector: str) -> None:
    p = pruned(selector=selector)
    starts = [36, 15, 29]
    together = p.score_batch(ROWS, starts)
    whole = p.last
    for number, (row, start) in enumerate(zip(ROWS, starts, strict=True)):
        alone = p.score(row, start)
        assert p.last is not None
        assert whole is not None
        assert p.last.kept_positions() == whole.kept_positions(number)
        torch.testing.assert_close(
            alone.logits.rows(0, 9), together[number].logits.rows(0, 9), rtol=1e-4, atol=1e-4
        )


PARTING = [ids(47), ids(46, seed=1), ids(12, seed=2)]
"""The first two keep 33 tokens each at the first stage, and so no padding, then 22 and 21."""


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_part_behind_a_stage_without_padding(family: str) -> None:
    p = pruned(family)
    together = p.generate(PARTING, 8, stop_at_eos=False)
    assert p.last is not None
    assert [p.last.layer_lengths(row) for row in range(3)] == [(47, 33, 22), (46, 33, 21), (12, 9, 6)]
    assert together.steps[0].cache_lengths == (47, 33, 22)
    kept = [p.last.kept_positions(row) for row in range(3)]
    for number, row in enumerate(PARTING):
        assert p.generate(row, 8, stop_at_eos=False).tokens[0] == together.tokens[number]
        assert p.last.kept_positions() == kept[number]
    assert generated(p, PARTING) == together.tokens


@pytest.mark.parametrize("selector", ["norm", "attention", "random"])
def test_a_batch_that_parts_is_judged_one_precision_up_with_the_same_choice(selector: str) -> None:
    """The choice is replayed in float64, where a filler stands for padding that is gone."""
    p = pruned(selector=selector)
    rows = [row + ids(4, seed=9) for row in PARTING]
    starts = [len(row) for row in PARTING]
    low = p.score_batch(rows, starts)
    before = [p.last.kept_positions(row) for row in range(3)] if p.last else []
    with p.raised():
        high = p.score_batch(rows, starts)
    assert p.last is not None
    assert p.last.replayed
    assert [p.last.kept_positions(row) for row in range(3)] == before
    for a, b in zip(low, high, strict=True):
        torch.testing.assert_close(
            a.logits.rows(0, 4).double(), b.logits.rows(0, 4).double(), rtol=1e-3, atol=1e-3
        )


def hooks_on(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def fingerprint(module: nn.Module) -> list[Any]:
    return [(name, value.data_ptr(), value.clone()) for name, value in module.state_dict().items()]


def logits(m: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = m.model(torch.tensor([ROWS[0]])).logits
    return found


@pytest.mark.parametrize("selector", ["norm", "attention"])
def test_nothing_is_left_behind(selector: str) -> None:
    p = pruned(selector=selector)
    core, before, state = p.model.core, logits(p.model), fingerprint(p.model.core)
    runs = []
    for _ in range(2):
        with p.attached():
            assert hooks_on(core) > 3
            runs.append(logits(p.model))
        assert hooks_on(core) == 0
    assert torch.equal(runs[0], runs[1])
    assert runs[0].shape != before.shape
    assert torch.equal(logits(p.model), before)
    for (name, place, value), (name2, place2, value2) in zip(state, fingerprint(core), strict=True):
        assert (name, place) == (name2, place2)
        assert torch.equal(value, value2)


def test_an_error_inside_leaves_nothing_behind() -> None:
    class Broken:
        name = "broken"

        def score(self, seen: Any) -> torch.Tensor:
            raise RuntimeError("boom")

    p = pruned(selector=Broken())
    before = logits(p.model)
    with pytest.raises(RuntimeError, match="boom"), p.attached():
        logits(p.model)
    assert hooks_on(p.model.core) == 0
    assert torch.equal(logits(p.model), before)
    with tr.Pruned(p.model, selector="norm", schedule=SCHEDULE).attached():
        logits(p.model)


def test_a_second_attach_is_refused() -> None:
    p = pruned()
    other = tr.Pruned(p.model, selector="norm", schedule=SCHEDULE)
    for inner in (p, other):
        with p.attached(), pytest.raises(ConfigError, match="is pruned already"), inner.attached():
            pass
    with p.attached(), pytest.raises(ConfigError, match="is pruned already"):
        p.generate(ROWS[0], 2)
    assert hooks_on(p.model.core) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("schedule", [{1: 1.0, 2: 1.0}, {1: 40}])
def test_keeping_everything_is_no_pruning_bit_for_bit(family: str, schedule: Any) -> None:
    p = pruned(family, schedule=schedule)
    plain = tr.KVCache(p.model)
    for row in (ROWS[0],):
        ours, theirs = p.score(row + ids(5, seed=9), 40), plain.score(row + ids(5, seed=9), 40)
        assert torch.equal(ours.logits.rows(0, 9), theirs.logits.rows(0, 9))
    assert p.last is not None
    assert p.last.is_untouched


def test_a_prompt_too_short_to_prune_passes_through() -> None:
    p = pruned(schedule={1: 0.5})
    plain = tr.KVCache(p.model)
    for length in (1, 2, 5):
        text = ids(length) + ids(3, seed=4)
        assert torch.equal(
            p.score(text, length).logits.rows(0, 9), plain.score(text, length).logits.rows(0, 9)
        )
        assert p.last is not None
        assert p.last.is_untouched
    p.score(ids(20), 20)
    assert not p.last.is_untouched


def test_eager_attention_decodes_the_same_tokens() -> None:
    p = pruned()
    fast = p.generate(ROWS, 8, stop_at_eos=False).tokens
    p.model.config._attn_implementation = "eager"
    assert p.generate(ROWS, 8, stop_at_eos=False).tokens == fast
    assert generated(p, ROWS) == fast


def test_beams_and_several_sequences_are_of_the_pruned_prompt() -> None:
    p = pruned(selector="random")
    told, mask = batch(ROWS[:2])
    with p.attached():
        beams = p.model.model.generate(
            told, attention_mask=mask, max_new_tokens=5, num_beams=3, num_return_sequences=2, do_sample=False
        )
        assert p.last is not None
        assert [p.last.kept_positions(i) == p.last.kept_positions(0) for i in range(3)] == [True] * 3
    assert beams.shape[0] == 4
    # One beam alone must be greedy decoding: the best of three beams scores at least as high under the same cache.
    best = [row[40:].tolist() for row in beams[::2]]
    scored = p.score_batch([r + b for r, b in zip(ROWS, best, strict=False)], [40, 17])
    greedy = p.generate(ROWS[:2], 5, stop_at_eos=False).tokens
    plain = p.score_batch([r + b for r, b in zip(ROWS, greedy, strict=False)], [40, 17])
    for mine, theirs, text, other in zip(scored, plain, best, greedy, strict=True):
        assert total(mine, text) >= total(theirs, other) - 1e-4


def total(scores: Any, tokens: list[int]) -> float:
    rows = torch.log_softmax(scores.logits.rows(0, len(tokens)).double(), -1)
    return float(rows[torch.arange(len(tokens)), tokens].sum())


def test_several_tokens_may_follow_a_pruned_prompt_when_told() -> None:
    p = pruned()
    one = p.open(ROWS[0], room=8)
    apart = torch.stack([one.feed([[t]])[0, -1] for t in (5, 6, 7)])
    at_once = p.open(ROWS[0], room=8).feed([[5, 6, 7]])[0]
    torch.testing.assert_close(at_once, apart, rtol=1e-5, atol=1e-5)
    run = p.open(ROWS, room=8)
    run.feed([[5, 6]] * 3)
    run.roll_back(1)
    again = run.feed([[6, 7]] * 3)[:, 0]
    want = p.open(ROWS, room=8).feed([[5, 6]] * 3)[:, -1]
    torch.testing.assert_close(again, want, rtol=1e-4, atol=1e-4)


def test_a_copied_cache_goes_on_from_the_same_prompt() -> None:
    p = pruned()
    cache = prefill(p, ROWS)
    twin = copy.deepcopy(cache)
    step = {"input_ids": torch.tensor([[9]] * 3), "logits_to_keep": 1}
    mask = torch.cat([batch(ROWS)[1], torch.ones(3, 1, dtype=torch.long)], dim=1)
    places = torch.tensor([[40], [17], [29]])
    with p.attached(), torch.inference_mode():
        found = [
            p.model.model(**step, attention_mask=mask, position_ids=places, past_key_values=c).logits
            for c in (cache, twin)
        ]
    assert torch.equal(*found)


class Nan:
    name = "nan"

    def score(self, seen: Any) -> torch.Tensor:
        return torch.where(seen.positions % 2 == 0, torch.nan, 1.0)


def test_nan_scores_are_ranked_last_and_told_when_looked_at() -> None:
    p = pruned(selector=Nan(), schedule={1: 0.6})
    p.generate(ROWS[0], 2)
    assert p.last is not None
    kept = p.last.kept_positions()[1]
    assert set(range(1, 40, 2)) <= set(kept)
    with pytest.raises(NonFiniteError, match="20 of 40 scores at layer 1"):
        p.last.to_json()


def test_the_log_says_what_each_stage_saw() -> None:
    p = pruned(selector="recency")
    p.score(ROWS[0], 40)
    assert p.last is not None
    first, second = p.last.to_json()["stages"]
    assert (first["tokens_in"], first["kept"]) == ([40], [28])
    assert (second["tokens_in"], second["kept"]) == ([28], [18])
    assert first["scores"] == {
        "min": 0.0,
        "mean": 19.5,
        "max": 39.0,
        "std": pytest.approx(11.543, abs=1e-3),
        "distinct": 40,
    }


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "chunked prefill": ({"prefill_chunk_size": 8}, "follow a pruned prompt in one forward"),
    "assisted": ({"prompt_lookup_num_tokens": 6}, "cannot be cut back"),
    "assisted, far": ({"prompt_lookup_num_tokens": 10}, "assisted decoding cannot be pruned"),
    "static cache": ({"cache_implementation": "static"}, "use transformers' DynamicCache|mask covers"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_ways_to_generate_that_cannot_be_pruned_are_refused(name: str) -> None:
    p, (given, words) = pruned(), REFUSALS[name]
    with p.attached(), pytest.raises((ConfigError, UnsupportedModelError), match=words):
        p.model.model.generate(torch.tensor([ROWS[0] * 2]), max_new_tokens=8, do_sample=False, **given)
    assert hooks_on(p.model.core) == 0


def test_a_cache_that_was_filled_elsewhere_is_refused() -> None:
    p = pruned()
    cache = p.model.model(torch.tensor([ROWS[0]]), use_cache=True).past_key_values
    for more in ([[5]], [ids(12)]):
        with p.attached(), pytest.raises(ConfigError, match="holds 40 tokens that were not pruned here"):
            p.model.model(torch.tensor(more), past_key_values=cache)


def test_a_cache_cut_back_into_the_prompt_is_refused() -> None:
    p = pruned()
    cache = prefill(p, [ROWS[0]])
    cache.crop(-5)
    with p.attached(), pytest.raises(ConfigError, match="cannot be cut back"):
        p.model.model(torch.tensor([[5]]), past_key_values=cache)


def test_losses_places_and_right_padding_are_refused() -> None:
    p = pruned()
    told, mask = batch(ROWS)
    with p.attached():
        with pytest.raises(ConfigError, match="drop `labels`"):
            p.model.model(told, attention_mask=mask, labels=told)
        with pytest.raises(ConfigError, match="logits_to_keep names places"):
            p.model.model(told, attention_mask=mask, logits_to_keep=torch.tensor([3]))
        with pytest.raises(UnsupportedModelError, match="row 1 of the batch is not padded on the left alone"):
            p.model.model(told, attention_mask=mask.flip(1))
    assert hooks_on(p.model.core) == 0


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "starcoder2", "gptoss"])
def test_a_model_with_a_window_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="sees a sliding window of 16 tokens"):
        tr.Pruned(zoo.make(family), selector="norm", schedule={1: 0.5})


def test_models_that_look_both_ways_or_are_compiled_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="masked-diffusion"):
        tr.Pruned(tr.load("builtin:diffusion"), selector="norm", schedule={1: 0.5})
    m = full("llama")
    with pytest.raises(UnsupportedModelError, match="is compiled"):
        tr.Pruned(load(torch.compile(m.model)), selector="norm", schedule={1: 0.5})


def test_a_budget_above_the_prompt_is_refused() -> None:
    p = pruned(schedule={1: 64})
    with pytest.raises(
        ConfigError, match=r"layer 1 keeps 64 tokens and the prompt has 40; give a smaller budget"
    ):
        p.generate(ROWS[0], 2)
    assert hooks_on(p.model.core) == 0


def test_a_fixed_budget_is_kept_to_the_token() -> None:
    p = pruned(schedule={1: 20, 2: 12})
    prefill(p, [ROWS[0], ROWS[2]])
    assert p.last is not None
    assert [p.last.layer_lengths(i) for i in (0, 1)] == [(40, 20, 12), (29, 20, 12)]


def test_the_length_of_the_prompt_is_read_from_the_mask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the body's first and last module nothing is read back to the host."""
    p = pruned(selector="norm")
    told, mask = batch(ROWS)
    reads: list[str] = []
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    def count(attach: bool) -> int:
        reads.clear()
        with torch.inference_mode(), Reads():
            if attach:
                with p.attached():
                    p.model.model(told, attention_mask=mask, logits_to_keep=1)
            else:
                p.model.model(told, attention_mask=mask, logits_to_keep=1)
        return len(reads)

    plain = count(attach=False)
    monkeypatch.setattr(torch.Tensor, "tolist", counted(reads, torch.Tensor.tolist))
    assert count(attach=True) - plain == 1


def counted(reads: list[str], right: Any) -> Any:
    def tolist(self: torch.Tensor) -> Any:
        reads.append("tolist")
        return right(self)

    return tolist


def test_length_is_what_this_file_thinks() -> None:
    assert [len(r) for r in ROWS] == [LENGTH, 17, 29]


def flash_like(
    module: Any, query: Any, key: Any, value: Any, mask: Any, position_ids: Any = None, **more: Any
) -> Any:
    """What flash attention takes: a mask of two axes or none, causal to the lower right; gaps mean packed texts."""
    assert mask is None or mask.ndim == 2
    if position_ids is not None and position_ids.shape[-1] > 1 and mask is None:
        assert bool((position_ids.diff(dim=-1) == 1).all())
    tokens, keys = query.shape[2], key.shape[2]
    seen = torch.arange(keys)[None] <= torch.arange(tokens)[:, None] + keys - tokens
    seen = seen[None, None].expand(query.shape[0], 1, -1, -1)
    seen = seen if mask is None else seen & mask[:, None, None].bool()
    groups = query.shape[1] // key.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=seen,
        scale=more["scaling"],
    )
    return out.transpose(1, 2).contiguous(), None


def test_a_mask_of_two_axes_is_cut_as_flash_attention_wants_it() -> None:
    """On a stand-in: flash attention itself needs a GPU."""
    from transformers import AttentionInterface, AttentionMaskInterface

    attend: Any = AttentionInterface
    masks: Any = AttentionMaskInterface
    for name in ("flash_stand_in", "stand_in"):
        attend.register(name, flash_like)
        masks.register(name, masks()["flash_attention_2"])
    p = pruned()
    want = p.generate(ROWS, 8, stop_at_eos=False).tokens
    alone = p.generate(ROWS[0], 8, stop_at_eos=False).tokens
    p.model.config._attn_implementation_internal = "flash_stand_in"
    assert p.generate(ROWS, 8, stop_at_eos=False).tokens == want
    assert p.generate(ROWS[0], 8, stop_at_eos=False).tokens == alone
    p.model.config._attn_implementation_internal = "stand_in"  # the control: gaps are handed over
    with pytest.raises(AssertionError):
        p.generate(ROWS[0], 8, stop_at_eos=False)


def test_one_precision_up_the_choice_is_taken_over_in_whichever_batch() -> None:
    """Scores that rounding decides: made anew in float64 the choice would be another one."""

    class Rounding:
        name = "rounding"

        def score(self, seen: Any) -> torch.Tensor:
            return (seen.hidden.sum(-1).float() * 1e9).remainder(1.0)

    p = pruned(selector=Rounding())
    starts = [36, 15, 29]
    kept = []
    for row, start in zip(ROWS, starts, strict=True):
        p.score(row, start)
        assert p.last is not None
        kept.append(p.last.kept_positions())
    with p.raised():
        p.score_batch(ROWS, starts)
        assert p.last.replayed
        assert [p.last.kept_positions(i) for i in range(3)] == kept
        p.score(ids(40, seed=77), 36)  # the control: a prompt that was never scored is chosen for anew
        assert not p.last.replayed
    fresh = pruned(selector=Rounding())
    with fresh.raised():
        fresh.score(ROWS[0], 36)
    assert fresh.last is not None
    assert fresh.last.kept_positions() != kept[0]


@pytest.mark.parametrize("schedule", [{1: 0.7, 2: 0.4}, {1: 0.5}])
@pytest.mark.parametrize("family", ["qwen3moe", "deepseek3", "mixtral"])
def test_routers_that_saw_fewer_tokens_leave_no_routes(family: str, schedule: Any) -> None:
    p = pruned(family, schedule=schedule)
    assert p.score(ids(44), 40).routes is None
    assert p.score(ids(9), 5).routes is not None  # the control: nothing is dropped from five tokens


def test_shipped_scorers_prune_as_they_were_trained():
    """No schedule given: that of the scorers, which are found by the built-in's name; another model has none."""
    long = tr.load("builtin:long", dtype="float32")
    given = tr.Schedule.of(Scorer.load("builtin:long").schedule)
    assert given.layers == (1, 2, 3)
    for runner in (tr.Pruned(long, "builtin:long"), pruned_named("pruned", long)):
        assert runner.schedule == given
        assert runner.selector.name == "learned"
    assert schedule_of(long, None, None, scorer="builtin:long") == given
    with pytest.raises(
        ConfigError, match="prunes at layer 4"
    ):  # other layers that are asked for are not replaced
        tr.Pruned(long, "builtin:long", schedule=schedule_of(long, 0.9, None, scorer="builtin:long"))
    assert shipped_scorer(tr.load("builtin:amateur")) is None
    assert shipped_scorer(long) == "builtin:long"


def test_scorers_without_a_schedule_get_the_papers():
    model = tr.load("builtin:long", dtype="float32")
    scorer = Scorer.new(model, (4, 7, 10))
    assert scorer.schedule is None
    assert tr.Pruned(model, scorer).schedule == tr.Schedule.geometric(12)
