"""A trace of two diffusion runs: what it records, where it says they part, replays, and the same from disk."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import twinrun as tr
from twinrun.errors import ConfigError, TraceError
from twinrun.faults.canvas_runners import Beside
from twinrun.models import zoo
from twinrun.tasks.arithmetic import problem
from twinrun.trace.canvas_checks import findings
from twinrun.trace.canvas_divergence import first_canvas_divergence
from twinrun.trace.canvas_side import CanvasSide
from twinrun.trace.canvas_step import CanvasStep, Skips
from twinrun.trace.canvas_trace import CanvasTrace
from twinrun.trace.cosines import cosine_distribution
from twinrun.trace.meta import META
from twinrun.trace.opened import open_trace

PROMPT = [9, 31, 7, 8, 64, 3, 12, 5, 40]
SKIP = tr.TokenSkip(layer_k=2, threshold=0.99)
OPTIONS = {"max_new_tokens": 16, "early_stop": False}


@functools.cache
def model() -> tr.Model:
    return zoo.make("llada-gqa")


def runner(**settings: object) -> tr.Diffusion:
    return tr.Diffusion(model(), block_length=8, **settings)


@functools.cache
def traced() -> CanvasTrace:
    """A plain run against a dual cache with a skip, with everything that is recorded."""
    return tr.trace(runner(), runner(cache="dual", skip=SKIP), PROMPT, level="states", **OPTIONS)


def step(number: int = 0, **changes: object) -> CanvasStep:
    """A step of one block of three masks behind a prompt of two, by hand: position 3 is the surest."""
    found = CanvasStep(
        step=number, block=0, block_step=number, full=True, seconds=0.1, positions=[2, 3, 4], ids=[9, 9, 9],
        open=[True, True, True], tokens=[5, 6, 7], confidence=[0.2, 0.7, 0.6], committed=[False, True, False],
        strays=[], computed=[0, 1, 2, 3, 4], widths=[5, 5], handed=[0, 1, 2, 3, 4], deep=[0, 1, 2, 3, 4],
        read=[0, 1, 2, 3, 4], keys=5, tokens_in_row=5, skips=None,
    )  # fmt: skip
    return replace(found, **changes)


def side(*steps: CanvasStep, **changes: object) -> CanvasSide:
    found = CanvasSide(
        who="candidate", runner="r", dtype="float32", identity={}, prompt=[1, 2], mask_id=9, gen_length=3,
        settings={"commit": "Quota(steps=None)", "cache": "none"},
    )  # fmt: skip
    return replace(found, steps=list(steps), **changes)


def test_a_run_against_itself_does_not_part() -> None:
    found = tr.trace(runner(), runner(), PROMPT, **OPTIONS)
    assert found.first_divergence is None
    assert (found.findings, found.passed) == ([], True)
    assert str(found) == "no divergence over 16 steps"


def test_every_step_is_recorded_with_its_positions() -> None:
    found = traced()
    run = runner(cache="dual", skip=SKIP).generate(PROMPT, 16, early_stop=False)
    mine = found.candidate
    assert [s.commits for s in mine.steps] == [
        dict(zip(s.positions[0], s.tokens[0], strict=True)) for s in run.steps
    ]
    assert mine.canvas == run.canvases[0]
    assert [s.full for s in mine.steps] == [s.full for s in run.steps]
    for s in mine.steps:
        assert s.positions == list(range(9 + 8 * s.block, 17 + 8 * s.block))
        assert s.computed == s.handed == (list(range(25)) if s.full else s.positions)
        assert len(s.widths) == 4
        assert s.keys == s.tokens_in_row == 25
        assert (s.skips is None) == s.full
    assert [*mine.canvases()][-1] == [*PROMPT, *run.canvases[0]]


def test_what_was_skipped_is_counted_a_step_and_in_all() -> None:
    found = traced()
    mine, totals = found.candidate, found.skipped()["candidate"]
    run = runner(cache="dual", skip=SKIP).generate(PROMPT, 16, early_stop=False)
    assert totals["steps"] == 14
    assert totals["tokens"] == 14 * 8
    assert totals["skipped_tokens"] == sum(len(s.skipped) for s in mine.steps) > 0
    assert totals["skipped_layers_share"] == pytest.approx(run.skip_ratio)
    assert dict(totals["by_step"])[1] == len(mine.steps[1].skipped)
    for s in mine.steps:
        assert s.deep == s.computed if s.skips is None else [p for p in s.positions if p not in s.skipped]


def test_cosines_are_measured_by_position_and_agree_with_the_decision() -> None:
    for s in traced().candidate.steps:
        if s.skips is None or s.skips.mean is None:
            continue
        assert s.cosines.shape == (5, 8)
        assert s.cosines[1].tolist() == pytest.approx(s.skips.mean, abs=1e-6)
        gone = s.cosines[4].isnan().tolist()
        assert [p for p, nan in zip(s.positions, gone, strict=True) if nan] == s.skipped
        assert s.skips.compared == s.positions


def test_kept_and_skipped_tokens_have_distributions() -> None:
    found = traced().cosines()
    assert found["reference"] is None
    told = found["candidate"]
    kept, skipped = sum(told["kept"]), sum(told["skipped"])
    assert kept + skipped == 14 * 8
    assert skipped == traced().skipped()["candidate"]["skipped_tokens"]
    assert len(told["edges"]) == len(told["kept"]) + 1
    assert told["mean_skipped"] > 0.99 > told["mean_kept"]
    edges = told["edges"]
    assert all(n == 0 for n, low in zip(told["skipped"], edges, strict=False) if low >= 1.01e-2)


def test_a_cosine_falls_into_its_own_bin() -> None:
    def counted(value: float) -> int:
        skips = Skips(
            layer=None, compared=[2], computed_at=[0], changed=[False], active=[True], mean=[value], low=[value],
            importance=None, token_layers=4, skipped_token_layers=0,
        )  # fmt: skip
        told = cosine_distribution([step(skips=skips)])
        (place,) = [i for i, n in enumerate(told["kept"]) if n]
        assert told["edges"][place] <= max(1 - value, 0) < told["edges"][place + 1]
        return place

    assert [counted(1 - 2 * 10**-n) for n in range(1, 7)] == [12, 10, 8, 6, 4, 2]
    assert (counted(1.0), counted(-1.0 + 1e-9)) == (0, 13)


@pytest.mark.parametrize("who", ["reference", "candidate"])
def test_every_recorded_step_runs_again_as_it_was(who: str) -> None:
    found = traced()
    for s in getattr(found, who).steps:
        again = found.replay(s.step, side=who)
        assert again.repeats, s.step
        assert again.same_commits
        assert (again.kl_max, again.top1_agreement) == (0.0, 1.0)


def test_a_replay_with_other_settings_compares_two_outputs() -> None:
    found = traced()
    s = next(s for s in found.candidate.steps if s.skipped)
    without = found.replay(s.step, skip=None)
    assert without.repeats
    assert without.kl_max > 0
    assert "with skip=None: " in str(without)
    assert set(without.after.computed) == set(s.positions)
    exact = found.replay(s.step, skip=None, cache="none")
    open_now = [p for p, is_open in zip(s.positions, s.open, strict=True) if is_open]
    assert list(exact.kl) == open_now
    everything = found.replay(s.step, skip=tr.TokenSkip(layer_k=2, threshold=1.0))
    assert everything.kl == without.kl  # the control: a skip that skips nothing is no skip


def test_a_full_step_needs_no_state_and_another_step_says_what_it_needs() -> None:
    found = tr.trace(runner(), runner(cache="dual"), PROMPT, level="steps", **OPTIONS)
    assert found.replay(8).repeats
    assert found.replay(3, side="reference", cache="none").repeats
    with pytest.raises(
        TraceError, match="recorded without its state; record with level='states', or replay the full"
    ):
        found.replay(9)
    with pytest.raises(TraceError, match="no step 99; the candidate has steps 0 to 15"):
        found.replay(99)
    with pytest.raises(ConfigError, match=r"unknown setting 'cahce'.*Did you mean 'cache'"):
        found.replay(8, cahce="none")


def test_other_layers_than_those_remembered_are_refused() -> None:
    found = traced()
    s = next(s for s in found.candidate.steps if s.skipped)
    with pytest.raises(ConfigError, match=r"the saved state remembers layers \[2\].*skip=None"):
        found.replay(s.step, skip=tr.TokenSkip(layer_k=3))
    with pytest.raises(ConfigError, match="step 2 of this block was recorded without"):
        found.replay(2, side="reference", cache="dual")


def test_a_trace_survives_the_disk(tmp_path: Path) -> None:
    found = traced()
    found.save(tmp_path / "t")
    back = open_trace(tmp_path / "t")
    assert isinstance(back, CanvasTrace)
    assert back.complete
    assert str(back) == str(found)
    for ours, theirs in zip(found.sides, back.sides, strict=True):
        assert [s.to_json() for s in ours.steps] == [s.to_json() for s in theirs.steps]
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            assert a.tensors().keys() == b.tensors().keys()
            assert all(
                torch.equal(t.nan_to_num(7.0), b.tensors()[name].nan_to_num(7.0))
                for name, t in a.tensors().items()
            )
    with pytest.raises(TraceError, match="has no model; give replay"):
        back.replay(1)
    assert back.replay(1, runner=runner(cache="dual", skip=SKIP)).repeats
    assert back.against(found) is None


def test_damage_is_an_error(tmp_path: Path) -> None:
    traced().save(tmp_path / "t")
    shutil.copytree(tmp_path / "t", tmp_path / "u")
    table = next((tmp_path / "u" / "candidate").glob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-3])
    with pytest.raises(TraceError, match="truncated or changed"):
        CanvasTrace.open(tmp_path / "u")
    meta = tmp_path / "t" / META
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "schema": "twinrun.canvas-trace/0"}))
    with pytest.raises(TraceError, match="read it with the version that wrote it"):
        CanvasTrace.open(tmp_path / "t")
    with pytest.raises(TraceError, match=r"holds no trace\.json"):
        open_trace(tmp_path)


KILLED = """
import os, sys
import twinrun as tr
from twinrun.models import zoo

model = zoo.make("llada-gqa")
a, b = (tr.Diffusion(model, block_length=8, cache=cache) for cache in ("none", "dual"))
done = 0
def on_progress(steps, total, what):
    global done
    done += what.startswith("candidate")
    if done == 6:
        os._exit(9)
tr.trace(a, b, list(range(5, 14)), max_new_tokens=16, level="states", out=sys.argv[1], on_progress=on_progress)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_a_trace_that_opens(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "t")], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr[-2000:]
    found = open_trace(tmp_path / "t")
    assert not found.complete
    assert len(found.reference.steps) > len(found.candidate.steps) == 6
    assert found.first_divergence is not None
    assert found.replay(5, runner=runner(cache="dual")).repeats


def test_parting_by_the_rule_is_told_from_parting_by_numbers() -> None:
    by_rule = tr.trace(runner(), runner(commit=tr.Quota(4)), PROMPT, **OPTIONS).first_divergence
    assert (by_rule.kind, by_rule.step) == ("commit set", 0)
    assert "Quota(steps=None) against Quota(steps=4)" in by_rule.sentence
    told = traced().first_divergence
    assert (told.kind, told.by_design) == ("numeric", True)
    assert told.error > 100 * traced().noise
    assert "the candidate reuses states by design" in told.sentence
    assert traced().passed


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"ids": [9, 8, 9]}, "canvas ids", "position 3 holds id 8, the reference has 9"),
        ({"positions": [3, 4, 5]}, "positions", "fills in positions 3 to 5, the reference 2 to 4"),
        ({"handed": [0, 1, 2, 0, 4]}, "positions", "rotary table of position 0 for the token at 3"),
        ({"keys": 7}, "mask", "attends to 7 slots, the reference to 5"),
        ({"committed": [False, False, True]}, "commit set", "not the numbers, but the rule or the schedule"),
        (
            {"confidence": [0.2, 0.6, 0.7], "committed": [False, False, True]},
            "numeric",
            "differ by at most 0.1",
        ),
        ({"confidence": [0.2, 0.7, 0.65]}, "numeric", "at position 4 the probability is off by 0.05"),
    ],
)
def test_each_kind_of_parting_has_its_words(changes: dict[str, object], kind: str, words: str) -> None:
    told = first_canvas_divergence(side(step()), side(step(**changes)), 1e-6)
    assert told.kind == kind
    assert words in told.sentence


def test_a_choice_that_hangs_on_rounding_is_a_tie() -> None:
    ours = step(confidence=[0.2, 0.7, 0.7 - 1e-6])
    theirs = step(confidence=[0.2, 0.7 - 1e-6, 0.7], committed=[False, False, True])
    tie = first_canvas_divergence(side(ours), side(theirs), 1e-6)
    assert tie.kind == "tie flip"
    assert tie.margin == pytest.approx(1e-6)
    far = step(confidence=[0.2, 0.7, 0.69])
    assert (
        first_canvas_divergence(side(far), side(replace(far, committed=theirs.committed)), 1e-6).kind
        == "commit set"
    )
    limit = {"settings": {"commit": "Threshold(p=0.7)", "cache": "none", "threshold": 0.7}}
    more = step(confidence=[0.2, 0.7, 0.7 - 1e-6], committed=[False, True, True])
    assert first_canvas_divergence(side(ours, **limit), side(more, **limit), 1e-6).kind == "tie flip"


def test_one_side_that_ends_early_is_said() -> None:
    told = first_canvas_divergence(side(step(), step(1)), side(step()))
    assert (told.kind, told.step) == ("step count", 1)


SKIPS = Skips(
    layer=1, compared=[2, 3, 4], computed_at=[0, 0, 0], changed=[False, False, False], active=[True, False, True],
    mean=[0.5, 0.99995, 0.6], low=[0.5, 0.9999, 0.6], importance=None, token_layers=6, skipped_token_layers=1,
)  # fmt: skip
LIMITS = {"skip_limits": {"threshold": 0.9999, "outlier": 0.7, "refresh_every": None, "neighbours": 0}}
PARTIAL = {
    "full": False,
    "computed": [2, 3, 4],
    "handed": [2, 3, 4],
    "deep": [2, 4],
    "read": [2, 4],
    "skips": SKIPS,
}


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        (
            {"skips": replace(SKIPS, compared=[0, 1, 2])},
            "skip decision",
            "compares position 0 with position 2",
        ),
        (
            {"skips": replace(SKIPS, mean=[0.5, 0.99, 0.6])},
            "skip decision",
            "skips position 3, whose mean cosine",
        ),
        ({"skips": replace(SKIPS, changed=[False, True, False])}, "skip decision", "skips position 3"),
        (
            {"skips": replace(SKIPS, mean=[0.99999, 0.99995, 0.6], low=[0.9, 0.9, 0.6])},
            "skip decision",
            "computes pos",
        ),
        (
            {"deep": [0, 2]},
            "positions",
            "from 1 on the rotary table of position 0 for the token at position 2",
        ),
        (
            {"handed": [0, 1, 2]},
            "positions",
            "hands the first layer the rotary table of position 0 for the token at 2",
        ),
        ({"read": [2, 3, 4]}, "head input", "1 skipped tokens as new (position 3 first)"),
        ({"keys": 9}, "mask", "padding is attended to"),
        ({"keys": 4}, "mask", "tokens are hidden from it"),
        ({"tokens": [5, 9, 7]}, "mask id", "commits the mask id 9 at position 3"),
        ({"strays": [[1, 2, 8]]}, "prompt", "overwrites position 1 of the prompt: id 2 becomes 8"),
        ({"open": [True, False, True]}, "canvas", "commits position 3, which was decided before"),
        ({"committed": [False, False, False]}, "progress", "commits nothing though 3 positions are open"),
    ],
)
def test_each_thing_that_is_wrong_in_itself_is_found(
    changes: dict[str, object], where: str, words: str
) -> None:
    right = side(step(), step(1, **PARTIAL), settings=LIMITS)
    assert findings(right) == []
    wrong = findings(side(step(), step(1, **{**PARTIAL, **changes}), settings=LIMITS))
    assert [f.where for f in wrong] == [where]
    assert words in wrong[0].sentence
    assert (wrong[0].step, wrong[0].block_step) == (1, 1)


def test_neighbours_of_a_changed_token_are_computed_and_no_others() -> None:
    limits = {"skip_limits": {**LIMITS["skip_limits"], "neighbours": 1}}
    still = {"mean": [0.99999, 0.99999, 0.6], "low": [0.9, 0.9, 0.6], "changed": [False, False, True]}

    def found(active: list[bool]) -> list[str]:
        skips = replace(SKIPS, **still, active=active)
        deep = [p for p, on in zip([2, 3, 4], active, strict=True) if on]
        wrong = findings(
            side(step(), step(1, **{**PARTIAL, "skips": skips, "deep": deep, "read": deep}), settings=limits)
        )
        return [f.sentence.split(", whose")[0] for f in wrong]

    assert found([False, True, True]) == []
    assert found([False, False, True]) == ["step 1 of block 0 skips position 3"]
    assert found([True, True, True]) == ["step 1 of block 0 computes position 2"]


def test_one_row_of_a_batch_may_drop_tokens_where_another_drops_none() -> None:
    """The forward then stays as wide as it was, and the layer where this row's tokens left shows in its rows alone."""
    own = tr.load("builtin:diffusion", dtype="float32")
    batch = Beside(own, block_length=16, cache="dual", skip=tr.TokenSkip.for_depth(6))
    question = own.chat(problem(0, seed=3).question)
    found = tr.trace(batch, batch, question, max_new_tokens=16)
    odd = [s for s in found.candidate.steps if s.skipped and len(set(s.widths)) == 1]
    assert odd
    assert {s.skips.layer for s in odd} == {3}
    assert found.passed


def test_what_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    causal = tr.Recompute(zoo.make("llama"))
    with pytest.raises(ConfigError, match=r"the reference .Recompute. decodes from left to right"):
        tr.trace(causal, runner(), PROMPT)
    with pytest.raises(ConfigError, match="a canvas is traced free"):
        tr.trace(runner(), runner(), PROMPT, forced=True)
    with pytest.raises(ConfigError, match="no multiple of block_length=8"):
        tr.trace(runner(), runner(), PROMPT, max_new_tokens=12)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "x").touch()
    with pytest.raises(ConfigError, match="not empty"):
        tr.trace(runner(), runner(), PROMPT, out=tmp_path, **OPTIONS)


def test_a_row_that_ended_early_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = frozenset(runner().generate(PROMPT, 32, early_stop=False).canvases[0][:6])
    monkeypatch.setattr(tr.Model, "eos_ids", property(lambda _model: ends))
    found = tr.trace(runner(), runner(), PROMPT, max_new_tokens=32)
    assert found.candidate.finish == "eos"
    assert len(found.candidate.steps) < 32
    assert found.findings == []
    assert [*found.candidate.canvases()][-1] == [*PROMPT, *found.candidate.canvas]
