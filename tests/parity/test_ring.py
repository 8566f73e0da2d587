"""The rolling cache against an oracle that shares no code with it, against recomputing, and with planted faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.support.plain_window import PlainWindow
from tests.support.zoo import make
from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.gpt import GPTForCausalLM
from twinrun.models.gpt_config import GPTConfig
from twinrun.runners.ring import RingLayer, RollingCache

WINDOW = 8
ROTARY = ("llama", "qwen2", "qwen3")


def ids(count: int, seed: int = 0) -> list[int]:
    pick = random.Random(seed)
    return [pick.randrange(3, 320) for _ in range(count)]


def tiny_gpt(block_size: int = 16, seed: int = 0) -> tr.Model:
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=320, n_embd=32, n_layer=2, n_head=2, block_size=block_size, initializer_range=0.2
    )
    return tr.load(GPTForCausalLM(config).eval())


def case(length: int, start: int, seed: int = 0) -> tr.Case:
    return tr.Case(label=f"{start} of {length}", rows=(tuple(ids(length, seed)),), starts=(start,))


def assert_sound(verdict: tr.Verdict) -> None:
    assert verdict.verdict in ("identical", "equivalent"), verdict.reason
    assert verdict.sweep.gap is not None, verdict.sweep.why_not


CASES = [case(41, 1), case(41, 5, 1), case(41, WINDOW, 2), case(41, 30, 3), case(WINDOW, 3, 4)]
"""Prompts of one token, within the window, as long as it, and longer."""


@pytest.mark.parametrize("family", ROTARY)
def test_a_ring_of_a_rotary_model_agrees_with_the_plain_oracle(family: str) -> None:
    model = make(family)
    assert_sound(tr.verify(PlainWindow.of(model, WINDOW), tr.KVCache(model, "rolling", window=WINDOW), CASES))


@pytest.mark.parametrize("window", [WINDOW, 16])
def test_a_ring_of_learned_positions_agrees_with_the_plain_oracle(window: int) -> None:
    """The difference that is stated: keys keep their positions, positions stop at the table's last row."""
    model = tiny_gpt()
    assert_sound(tr.verify(PlainWindow.of(model, window), tr.KVCache(model, "rolling", window=window), CASES))


@pytest.mark.parametrize("family", ROTARY)
def test_a_windowed_recomputation_agrees_with_the_plain_oracle(family: str) -> None:
    model = make(family)
    assert_sound(tr.verify(PlainWindow.of(model, WINDOW), tr.Recompute(model, window=WINDOW), CASES[1:]))


def test_the_sliding_recomputation_is_a_fresh_forward_over_the_window() -> None:
    model, text = tiny_gpt(), ids(30)
    found = tr.Recompute(model, window=WINDOW).score(text, 1).logits.rows(0, 99)
    for i in range(30):
        part = text[max(0, i + 1 - WINDOW) : i + 1]
        alone = tr.SinglePass(model).score(part, len(part)).logits.rows(0, 1)[0]
        assert float((found[i] - alone).abs().max()) < 1e-4, i


@pytest.mark.parametrize("window", [WINDOW, 16])
def test_ring_and_recomputation_of_learned_positions_part_at_the_first_slide(window: int) -> None:
    model = tiny_gpt()
    sides = tr.Recompute(model, window=window), tr.KVCache(model, "rolling", window=window)
    assert_sound(tr.verify(*sides, [case(window, 3)]))
    verdict = tr.verify(*sides, [case(41, 3)], explain=False)
    assert verdict.verdict == "different"
    assert verdict.blame is not None
    assert f"first at position {window}," in verdict.blame
    allowed = {"kl": 2 * (verdict.kl_mean or 0.0)}
    assert tr.verify(*sides, [case(41, 3)], budget=allowed, explain=False).verdict == "lossy"


def slot_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the first slide the second oldest token is overwritten in place of the oldest."""
    write = RingLayer._write

    def wrong(self: RingLayer, keys: Tensor, values: Tensor) -> None:
        late = self.seen >= self.slots
        self.seen += late
        write(self, keys, values)
        self.seen -= late

    monkeypatch.setattr(RingLayer, "_write", wrong)


def unfilled_slots_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step attends to all slots, the zeros in those never written too."""
    update = RingLayer.update

    def wrong(self: RingLayer, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = update(self, keys, values, *args, **kwargs)
        return found if keys.shape[-2] > 1 else (self.keys, self.values)

    monkeypatch.setattr(RingLayer, "update", wrong)


def positions_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The position id is the slot: it starts again at 0 with every turn of the ring."""
    handed = RollingCache.handed

    def wrong(self: RollingCache, real: Tensor | None, positions: Tensor, width: int) -> Any:
        mask, _ = handed(self, real, positions, width)
        return mask, positions % WINDOW

    monkeypatch.setattr(RollingCache, "handed", wrong)


def window_one_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt longer than the window sees one token too many; so would a mask with <= in place of <."""
    from twinrun.runners import window

    right = window._visible
    monkeypatch.setattr(
        window, "_visible", lambda q, k, w, real: right(q, k, None if w is None else w + 1, real)
    )


FAULTS = [slot_off_by_one, unfilled_slots_seen, positions_restart, window_one_too_long]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("build", [lambda: make("llama"), lambda: tiny_gpt()], ids=["rotary", "learned"])
def test_a_planted_fault_is_refused(
    fault: Callable[[pytest.MonkeyPatch], None],
    build: Callable[[], tr.Model],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build()
    oracle, ring = PlainWindow.of(model, WINDOW), tr.KVCache(model, "rolling", window=WINDOW)
    assert_sound(tr.verify(oracle, ring, CASES))
    fault(monkeypatch)
    assert tr.verify(oracle, ring, CASES, explain=False).verdict == "different"


def batch_error(model: tr.Model, window: int) -> float:
    """Largest change of a logit, in float64, of a row in a padded batch against the row alone."""
    rows, starts = [ids(9, 2), ids(33, 3), ids(20, 4), ids(40, 5)], [4, 8, 15, 21]
    runner = tr.KVCache(model, "rolling", window=window)
    worst = 0.0
    with runner.raised():
        for row, start, together in zip(rows, starts, runner.score_batch(rows, starts), strict=True):
            alone = runner.score(row, start)
            gap = together.logits.rows(0, 99) - alone.logits.rows(0, 99)
            worst = max(worst, float(gap.abs().max()))
    return worst


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gptoss", "gpt"])
def test_a_row_of_a_padded_batch_is_the_row_alone(family: str) -> None:
    assert batch_error(tiny_gpt() if family == "gpt" else make(family), WINDOW) < 1e-12


def test_a_batch_whose_padding_is_read_in_the_order_of_the_text_breaks_that_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots stand in ring order; a mask in the order of the text hides the wrong ones."""
    count = RingLayer.indices

    def wrong(self: RingLayer, width: int) -> Tensor:
        return count(self, width).sort().values

    monkeypatch.setattr(RingLayer, "indices", wrong)
    assert batch_error(make("llama"), WINDOW) > 1e-3


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "cohere2", "gptoss"])
def test_without_a_window_the_ring_takes_the_model_s_own(family: str) -> None:
    model = make(family)
    assert_sound(tr.verify(tr.Recompute(model), tr.KVCache(model, "rolling"), [case(41, 5), case(41, 30, 1)]))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt"])
@pytest.mark.parametrize("rows", [1, 2], ids=["alone", "padded"])
def test_several_tokens_at_once_see_the_window_across_the_turn_of_the_ring(family: str, rows: int) -> None:
    """Chunks of 1 to 11 tokens through a ring of 8, in float64, against each token fed by itself."""
    model = tiny_gpt() if family == "gpt" else make(family)
    ring, prompts = tr.KVCache(model, "rolling", window=WINDOW), [ids(5, 7), ids(3, 8)][:rows]
    more = [ids(40, 9 + row) for row in range(rows)]
    with ring.raised():
        single, chunked, at = ring.open(prompts, room=40), ring.open(prompts, room=40), 0
        right = torch.cat([single.feed([[row[i]] for row in more]) for i in range(40)], dim=1)
        for size in (2, 1, 7, 11, 1, 1, 9, 3, 5):
            found = chunked.feed([row[at : at + size] for row in more])
            assert float((found - right[:, at : at + size]).abs().max()) < 1e-12, (at, size)
            at += size
    assert at == 40


def test_generation_goes_on_past_the_table_in_both_ways() -> None:
    model, prompt = tiny_gpt(), ids(5)
    ring = tr.KVCache(model, "rolling").generate(prompt, 40, stop_at_eos=False)
    sliding = tr.Recompute(model, window=16).generate(prompt, 40, stop_at_eos=False)
    assert len(ring.tokens[0]) == len(sliding.tokens[0]) == 40
    assert ring.tokens[0][:12] == sliding.tokens[0][:12]  # up to position 16 they are one
    text = prompt + ring.tokens[0]
    scores = PlainWindow.of(model, 16).score(text, 5)
    assert scores.argmax(-1)[:-1].tolist() == ring.tokens[0]
    for refused in (tr.Recompute(model), tr.KVCache(model), tr.SinglePass(model)):
        with pytest.raises(ConfigError, match="exceeds the context"):
            refused.generate(prompt, 40)


@pytest.mark.parametrize("length", [500, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("build", [lambda: make("qwen3"), lambda: tiny_gpt()], ids=["rotary", "learned"])
def test_a_long_text_does_not_drift(build: Callable[[], tr.Model], length: int) -> None:
    model = build()
    whole = tr.Case(label="long", rows=(tuple(ids(length)),), starts=(1,))
    verdict = tr.verify(PlainWindow.of(model, WINDOW), tr.KVCache(model, "rolling", window=WINDOW), [whole])
    assert_sound(verdict)
    assert verdict.positions == length


def test_the_ring_stays_where_it_was_allocated_and_does_not_grow() -> None:
    model = make("qwen3")
    run = tr.KVCache(model, "rolling", window=WINDOW).open(ids(1), room=400)

    def memory() -> list[tuple[int, int]]:
        stores = [store for layer in run._state.cache.layers for store in (layer.keys, layer.values)]
        return [(store.data_ptr(), store.untyped_storage().nbytes()) for store in stores]

    before = memory()
    for token in ids(399, 1):
        run.feed([[token]])
    assert memory() == before
    config = model.config
    one = WINDOW * config.num_key_value_heads * config.head_dim * 4
    assert {size for _, size in before} == {2 * config.num_hidden_layers * one}, "one block holds all layers"


@pytest.mark.parametrize(
    ("family", "options", "error", "message"),
    [
        ("llama", {}, ConfigError, "has no window of its own; give KVCache one"),
        ("llama", {"window": 0}, ConfigError, "window must be at least 1"),
        ("gpt2", {"window": 600}, ConfigError, r"exceeds the table of positions .*\(512 rows\)"),
        ("llama-rope", {"window": 8}, UnsupportedModelError, "other rotary frequencies"),
        ("phi3-long", {"window": 8}, UnsupportedModelError, "other rotary frequencies"),
        ("bloom", {"window": 8}, UnsupportedModelError, "ALiBi"),
    ],
)
def test_what_cannot_be_made_right_is_refused(
    family: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = make(family)
    with pytest.raises(error, match=message):
        tr.KVCache(model, "rolling", **options)
    if options:
        with pytest.raises(error, match=message):
            tr.Recompute(model, **options)
