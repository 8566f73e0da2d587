"""Faults of diffusion decoding are caught by the trace, named in words, and leave nothing behind; clean runs pass."""

from __future__ import annotations

import functools

import pytest

import twinrun as tr
from tests.support.state import fingerprint
from twinrun.faults.canvas_judged import clean_words, judge_canvas_fault, trace_clean, trace_fault
from twinrun.faults.canvas_runners import CANVAS_RUNNERS, suite_prompt
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import FAULTS, get_fault
from twinrun.models import zoo

CANVAS = [name for name, factory in FAULTS.items() if factory().way == "diffusion"]
WORDS = {
    "skip-compares-rows": "step 1 of block 0 compares position 0 with position 19",
    "skip-block-local-positions": "hands the layers from 2 on the rotary table of position",
    "skip-early-states-to-head": "which have passed 2 layers only; they compete in the commit",
    "skip-keys-rotated-twice": "): they are rotated twice",
    "skip-first-row-decides": "the decision is not its own",
    "mask-id-committed": "commits the mask id 319 at position",
    "prompt-mask-overwritten": "commits a token at position 7, a mask in the prompt",
    "factor-off-by-one": "not the numbers, but the rule or the schedule chooses otherwise (Factor(f=1.0) on both",
    "canvas-padding-attended": "attend to 59 slots where the row has 51 tokens: padding is attended to",
}


@functools.cache
def model(family: str, dtype: str = "float32") -> tr.Model:
    return zoo.make(family, dtype)


def test_every_fault_of_a_canvas_has_its_words() -> None:
    assert list(WORDS) == CANVAS


@pytest.mark.parametrize(("family", "dtype"), [("llada", "float32"), ("llada-gqa", "bfloat16")])
@pytest.mark.parametrize("name", CANVAS)
def test_a_fault_is_caught_and_named_in_words(name: str, family: str, dtype: str) -> None:
    judged = judge_canvas_fault(get_fault(name), model(family, dtype))
    assert judged.caught
    assert judged.right, judged.named
    assert WORDS[name] in judged.sentence


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", zoo.MASKED)
@pytest.mark.parametrize("name", CANVAS)
def test_a_fault_is_caught_in_every_runner(name: str, family: str, dtype: str) -> None:
    fault = get_fault(name)
    for runner in fault.runners:
        assert judge_canvas_fault(fault, model(family, dtype), runner=runner).right, runner


@pytest.mark.parametrize(("family", "dtype"), [("llada", "float32"), ("llada-gqa", "bfloat16")])
@pytest.mark.parametrize("runner", CANVAS_RUNNERS)
def test_the_same_run_without_a_fault_raises_no_alarm(runner: str, family: str, dtype: str) -> None:
    found = trace_clean(model(family, dtype), runner)
    assert found.findings == []
    assert clean_words(found)[0] in ("identical", "equivalent"), str(found)
    if "skip" in runner:
        skipped = found.skipped()["candidate"]
        assert 0 < skipped["skipped_tokens"] < skipped["tokens"]  # else nothing was put to the test


def test_the_shapes_of_the_casebook_are_named_in_every_block() -> None:
    """Hidden states [1, 147, d] of the canvas against [1, 32, d] of a block: a prompt of 19 and 128 new tokens."""
    fault = get_fault("skip-compares-rows")
    skip = tr.TokenSkip(layer_k=2, threshold=0.999, neighbours=0)
    plain = tr.Diffusion(model("llada"), commit=tr.Quota(4))
    candidate = tr.Diffusion(model("llada"), cache="dual", commit=tr.Quota(4), skip=skip)
    with fault.planted(candidate):
        found = tr.trace(plain, candidate, suite_prompt(model("llada")), max_new_tokens=128, early_stop=False)
    first = [f for f in found.findings if f.where == "skip decision" and f.block_step == 1]
    assert [f.block for f in first] == [0, 1, 2, 3]
    for finding in first:
        begin = 19 + 32 * finding.block
        assert (
            f"step 1 of block {finding.block} compares position 0 with position {begin} " in finding.sentence
        )
        assert "row j of [1, 147, d] (step 0) against row j of [1, 32, d]" in finding.sentence
        assert f"32 of 32 tokens meet the states of another position, all {begin} apart" in finding.sentence
    assert found.blame.where == "skip decision"
    assert found.blame.block_step == 1


def test_the_right_decision_is_seen_beside_the_wrong_one() -> None:
    """The trace aligns by position itself: what the faulty run compared, and what it should have compared."""
    found = trace_fault(get_fault("skip-compares-rows"), model("llada"))
    step = found.candidate.steps[1]
    assert step.skips is not None
    assert step.skips.mean is not None
    still = [i for i, changed in enumerate(step.skips.changed) if not changed]
    assert len(still) == 15
    assert min(step.cosines[1][still].tolist()) > 0.99 > max(step.skips.mean[i] for i in still)
    sound = trace_clean(model("llada"), "diffusion:dual+skip").candidate.steps[1]
    assert sound.skips is not None
    assert sound.skips.mean == pytest.approx(sound.cosines[1].tolist(), abs=1e-6)


@pytest.mark.parametrize("name", CANVAS)
def test_planting_leaves_nothing_behind(name: str) -> None:
    fault = get_fault(name)
    runner = candidate_for(fault, model("llada"))
    prompt = suite_prompt(runner.model)
    right, attributes, before = (
        runner.generate(prompt, 16),
        dict(vars(runner)),
        fingerprint(runner.model.core),
    )
    with fault.planted(runner):
        runner.generate(prompt, 16)
    with pytest.raises(KeyError), fault.planted(runner):
        raise KeyError
    assert fingerprint(runner.model.core) == before
    assert vars(runner) == attributes
    assert runner.generate(prompt, 16).canvases == right.canvases


def test_what_cannot_have_a_fault_says_why() -> None:
    fault = get_fault("skip-compares-rows")
    assert "causal" in str(fault.applies(zoo.make("llama")))
    with pytest.raises(tr.errors.ConfigError, match="choose from diffusion:dual"):
        candidate_for(fault, model("llada"), "diffusion:none")
    with (
        pytest.raises(tr.errors.ConfigError, match="does not show in diffusion:dual;"),
        fault.planted(CANVAS_RUNNERS["diffusion:dual"](model("llada"))),
    ):
        pass
