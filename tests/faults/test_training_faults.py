"""Faults of a scorer's training: each is caught and named, and a clean training is not accused."""

from __future__ import annotations

import pytest

from tests.support.command import run
from tests.support.state import fingerprint
from twinrun.faults.fault import candidate_for
from twinrun.faults.registry import FAULTS, get_fault
from twinrun.faults.trainee import Trainee
from twinrun.faults.training_judged import judge_training_fault, train_clean
from twinrun.models.zoo import make

TRAINING = [name for name, factory in FAULTS.items() if factory().way == "training"]
WORDS = {
    "loss-terms-overwritten": "loss term mse/1 is zero in the first 3 steps",
    "targets-of-other-samples": "is not its saliency at layer 1",
}
FAMILIES = ("llama", "gpt2")
DTYPES = ("float32", "bfloat16")


def test_every_training_fault_has_its_words() -> None:
    assert list(WORDS) == TRAINING


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRAINING)
def test_it_is_caught_and_named(name: str, family: str, dtype: str) -> None:
    model = make(family, dtype)
    before = fingerprint(model.model)
    found = judge_training_fault(get_fault(name), model, family=family)
    assert found.caught
    assert found.right
    assert WORDS[name] in found.sentence
    assert fingerprint(model.model) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clean_training_is_not_accused(family: str, dtype: str) -> None:
    assert train_clean(make(family, dtype)) == ("identical", "none")


def test_nothing_stays_behind() -> None:
    trainee = Trainee(make("llama", "float32"))
    for name in TRAINING:
        with get_fault(name).planted(trainee):
            assert vars(trainee.training.objective).keys() & {"terms", "target_of"}
        assert not vars(trainee.training.objective).keys() & {"terms", "target_of"}
    assert trainee.finding() is None


def test_where_it_cannot_be_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fault = get_fault(TRAINING[0])
    assert "sliding" in str(fault.applies(make("mistral", "float32")))
    assert isinstance(candidate_for(fault, make("llama", "float32")), Trainee)
    code, _, error = run(
        capsys, "trace", "builtin:amateur", "--prompt", "a b", "--plant", TRAINING[0], "--max-new-tokens", "2"
    )
    assert code == 2
    assert "which has no trace" in error
