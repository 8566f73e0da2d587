"""Decoding against an oracle in plain loops, token for token, over random models, rules, caches and batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import twinrun as tr
from tests.support.masked import END, MASK, masked_model, prompts
from tests.support.plain_diffusion import PlainDiffusion, PlainRun
from twinrun.models.llada import to_llada_fields, to_llada_names
from twinrun.records.diffusion_run import DiffusionRun

RULES = {
    "quota": lambda value: tr.Quota(int(value)),
    "threshold": tr.Threshold,
    "factor": tr.Factor,
}


class PlainDelayed(PlainDiffusion):
    """Between full forwards: what is open, and what the step before decided."""

    def choose(self, confidence, number):
        chosen = super().choose(confidence, number)
        self.left, self.last = set(confidence) - chosen, chosen
        return chosen

    def renewed(self, inside, length):
        before = {p - 1 for p in self.left} if self.shifts else set()
        return sorted(self.left | self.last | before)


class PlainSuffix(PlainDiffusion):
    """Positions behind the block that were not drawn do not exist for it."""

    window: tr.SuffixWindow

    def generate(self, prompt, room):
        self.begin, self.end, self.number = len(prompt), len(prompt) + room, -1
        return super().generate(prompt, room)

    def is_full(self, number):
        if number == 0:
            self.number += 1
            stop = self.begin + (self.number + 1) * self.block
            drawn = self.window.keep(self.end - stop, self.number).tolist()
            self.seen = set(range(stop)) | {stop + i for i, stays in enumerate(drawn) if stays}
        return super().is_full(number)

    def run(self, ids, at, store):
        for kept in store:
            for position in set(kept) - self.seen:
                del kept[position]
        return super().run(ids, [p for p in at if p in self.seen], store)


class PlainDrawn(PlainDiffusion):
    """Noise of each forward: exponential numbers for the open positions in turn, from one source a row."""

    source: torch.Generator

    def propose(self, logits, positions, forward):
        vocab = len(next(iter(logits.values())))
        drawn = torch.empty(len(positions), vocab, dtype=torch.float64).exponential_(generator=self.source)
        self.noise = lambda _, position: -drawn[positions.index(position)].log()
        return super().propose(logits, positions, forward)


def plain(model: tr.Model, kind: type[PlainDiffusion] = PlainDiffusion, **asked: Any) -> PlainDiffusion:
    """The oracle of a model, in the names of a LLaDA checkpoint."""
    state = model.model.state_dict()
    names = to_llada_names(state)
    return kind(
        weights={names[k]: v for k, v in state.items()},
        fields=to_llada_fields(model.model.config, MASK),
        ends={END},
        shifts=model.shifts_logits,
        **asked,
    )


def check(run: DiffusionRun, row: int, want: PlainRun) -> None:
    """A row of a run against the oracle's: order, tokens, confidences, and where it ends."""
    mine = [s for s in run.steps if s.positions[row]]
    assert len(mine) == len(want.steps)
    for got, step in zip(mine, want.steps, strict=True):
        assert got.full == step.full
        assert dict(zip(got.positions[row], got.tokens[row], strict=True)) == {
            p: token for p, (token, _) in step.committed.items()
        }
        for confidence, (_, exact) in zip(got.confidence[row], step.committed.values(), strict=True):
            assert confidence == pytest.approx(exact, rel=1e-10)
    assert run.tokens[row] == want.tokens[: len(run.tokens[row])]
    if len(want.tokens) < len(want.canvas):
        assert run.finish[row] == "eos"
        assert run.tokens[row] == want.tokens


def check_all(run: DiffusionRun, want: list[PlainRun]) -> None:
    """Every row of a run."""
    for row, expected in enumerate(want):
        check(run, row, expected)


def ending(seed: int, **kw: Any) -> tr.Model:
    """A random float32 model that ends its rows now and then; run one precision up, down to its rotary tables."""
    model = masked_model(seed=seed, dtype=torch.float32, **kw)
    if seed % 2:
        with torch.no_grad():
            model.model.lm_head.weight[END] = model.model.lm_head.weight[3] * 1.01
    return model


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "layers": st.integers(1, 3),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "shifts": st.booleans(),
        "lengths": st.lists(st.integers(1, 9), min_size=1, max_size=3),
        "block": st.sampled_from([1, 4, 6]),
        "blocks": st.integers(1, 3),
        "cache": st.sampled_from(["none", "prefix", "dual"]),
        "refresh_every": st.sampled_from([None, 1, 2, 3]),
        "rule": st.one_of(
            st.tuples(st.just("quota"), st.integers(1, 6)),
            st.tuples(st.just("threshold"), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])),
            st.tuples(st.just("factor"), st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        ),
        "extra": st.sampled_from(["", "", "delay", "suffix"]),
    }
)
FIRST = {
    "seed": 1, "layers": 3, "kv_heads": 2, "shifts": True, "lengths": [5, 1, 9], "block": 6, "blocks": 3,
    "cache": "dual", "refresh_every": 3, "rule": ("threshold", 0.5), "extra": "delay",
}  # fmt: skip


def both(case: dict[str, Any], **other: Any) -> tuple[DiffusionRun, list[PlainRun]]:
    """Run a case on both sides; `other` changes what the oracle is asked."""
    model = ending(case["seed"], layers=case["layers"], kv_heads=case["kv_heads"], shifts=case["shifts"])
    rows = prompts(*case["lengths"], seed=case["seed"])
    if case["seed"] % 3 == 0 and len(rows[0]) > 1:  # a canvas of nothing but masks is one great tie
        rows[0][-1] = MASK  # a mask in the text
    cache = "dual" if case["extra"] == "delay" else case["cache"]
    asked: dict[str, Any] = {
        "cache": cache, "refresh_every": None if cache == "none" else case["refresh_every"],
    }  # fmt: skip
    kind: type[PlainDiffusion] = PlainDiffusion
    options: dict[str, Any] = {}
    window = tr.SuffixWindow(window=6, decay=2.0, seed=case["seed"])
    if case["extra"] == "delay":
        kind, options = PlainDelayed, {"delay": True}
    if case["extra"] == "suffix":
        kind, options = PlainSuffix, {"suffix_window": window}
    name, value = case["rule"]
    runner = tr.Diffusion(model, block_length=case["block"], commit=RULES[name](value), **asked, **options)
    oracle = plain(model, kind, **{"block": case["block"], "rule": case["rule"], **asked, **other})
    if isinstance(oracle, PlainSuffix):
        oracle.window = window
    room = case["block"] * case["blocks"]
    with runner.raised():
        run = runner.generate(rows, room)
    return run, [oracle.generate(row, room) for row in rows]


@settings(max_examples=60)
@example(FIRST)
@given(CASES)
def test_every_row_is_what_the_oracle_says(case):
    run, want = both(case)
    check_all(run, want)


@pytest.mark.slow
@settings(max_examples=400)
@given(CASES)
def test_every_row_is_what_the_oracle_says_over_many_cases(case):
    run, want = both(case)
    check_all(run, want)


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("shifts", [False, True])
def test_drawn_tokens_are_those_of_the_oracle(cache, shifts):
    model = ending(1, shifts=shifts)
    rows = prompts(4, 7)
    runner = tr.Diffusion(model, block_length=6, cache=cache, commit=tr.Threshold(0.3))
    with runner.raised():
        run = runner.generate(rows, 18, temperature=0.7, seed=40)
        greedy = runner.generate(rows, 18)
    assert run.canvases != greedy.canvases, "the control"
    for row, given_row in enumerate(rows):
        oracle = plain(model, PlainDrawn, block=6, rule=("threshold", 0.3), cache=cache, temperature=0.7)
        oracle.source = torch.Generator().manual_seed(40 + row)
        check(run, row, oracle.generate(given_row, 18))


CONTROLS = {
    "another cache": {"cache": "prefix"},
    "no refresh": {"refresh_every": None},
    "another threshold": {"rule": ("threshold", 0.2)},
    "another rule": {"rule": ("factor", 1.0)},
    "another block": {"block": 9},
}


@pytest.mark.parametrize("other", CONTROLS.values(), ids=CONTROLS)
def test_an_oracle_that_was_asked_something_else_disagrees(other):
    case = {**FIRST, "extra": "", "shifts": False, "lengths": [5, 9]}
    run, want = both(case)
    check(run, 0, want[0])
    run, want = both(case, **other)
    with pytest.raises(AssertionError):
        check_all(run, want)
