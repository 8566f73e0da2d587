"""Casebook 4: each defect of sampling and tuning is planted, seen and named; a clean run is not accused."""

from __future__ import annotations

import pytest

from tests.support.command import run
from tests.support.state import fingerprint
from twinrun.contrast.problems import read_questions
from twinrun.contrast.settings import SampleSettings
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import FAULTS, get_fault
from twinrun.faults.sampled import SampledRun
from twinrun.faults.sampling_judged import judge_run, judge_sampling_fault, sample_clean
from twinrun.faults.tuned import TunedBatch
from twinrun.faults.tuning_judged import judge_tuning_fault, tune_clean
from twinrun.models.zoo import make

DRAWN = SampleSettings(batch_size=2, max_new_tokens=24, temperature=3.0, seed=4)
"""Drawn answers hold ids that no tokenizer would choose for their text."""
SEEN = {
    "prefix-tokenised-again": "; the amateur was given other ids than were written",
    "samples-lost-on-resume": "0' was marked as done, and its samples are not there",
    "processed-scores": "KL at answer token",
}
TUNING = "padded-column-trained"
FAMILIES = ("llama", "gpt2")
DTYPES = ("float32", "bfloat16")


def test_the_defects_of_the_case_are_in_the_registry():
    assert [n for n in FAULTS if get_fault(n).way == "sampling"] == list(SEEN)
    assert [n for n in FAULTS if get_fault(n).way == "tuning"] == [TUNING]


@pytest.fixture(scope="module")
def pair_run(expert, amateur):
    return SampledRun(expert, amateur, read_questions("builtin:arithmetic", limit=4), DRAWN)


@pytest.mark.parametrize("name", SEEN)
def test_with_the_builtin_pair_it_is_seen_and_says_where(name, pair_run):
    found = judge_run(get_fault(name), pair_run)
    assert found.caught
    assert found.right
    assert SEEN[name] in found.sentence


def test_without_a_defect_nothing_is_found(pair_run):
    assert sample_clean(pair_run) == ("identical", "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SEEN)
def test_it_is_caught_and_named_in_random_models(name, family, dtype):
    model = make(family, dtype)
    before = fingerprint(model.model)
    found = judge_sampling_fault(get_fault(name), model, family=family)
    assert (found.caught, found.named) == (True, get_fault(name).site.kind)
    assert SEEN[name] in found.sentence
    assert fingerprint(model.model) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clean_sampling_is_not_accused(family, dtype):
    assert sample_clean(SampledRun.small(make(family, dtype))) == ("identical", "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_column_is_refused_before_it_is_trained(family, dtype):
    found = judge_tuning_fault(get_fault(TUNING), make(family, dtype), family=family)
    assert (found.caught, found.named, found.right) == (True, "scores", True)
    word, named = tune_clean(make(family, dtype))
    assert word in ("identical", "equivalent")
    assert named == "none"


def test_a_forward_that_is_wrong_alone_too_is_not_called_wrong_rows():
    batch = TunedBatch(make("llama"))
    right = batch.forward.logits_of
    batch.forward.logits_of = lambda module, lessons: 1.5 * right(module, lessons)
    assert not batch.together().passed
    assert not any(verdict.passed for verdict in batch.alone())


def test_nothing_stays_behind():
    model = make("llama")
    for name in (*SEEN, TUNING):
        subject = candidate_for(get_fault(name), model)
        holders = [subject.forward] if name == TUNING else [subject, *subject.sampler._sides]
        before = [dict(vars(holder)) for holder in holders]
        with get_fault(name).planted(subject):
            assert [dict(vars(holder)) for holder in holders] != before
        assert [dict(vars(holder)) for holder in holders] == before


@pytest.mark.parametrize("name", [*SEEN, TUNING])
def test_where_nothing_is_traced_it_is_refused(name, capsys):
    argv = ("trace", "builtin:amateur", "--prompt", "a b", "--plant", name, "--max-new-tokens", "2")
    code, _, error = run(capsys, *argv)
    assert code == 2
    assert "which has no trace" in error
