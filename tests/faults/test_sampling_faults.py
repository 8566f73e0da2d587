"""Casebook 4, sampling: each defect is planted and seen, and a clean run that was stopped and continued is not."""

from __future__ import annotations

import pytest

from twinrun.contrast.problems import read_questions
from twinrun.contrast.settings import SampleSettings
from twinrun.errors import ConfigError
from twinrun.faults.sampling import SAMPLING_FAULTS, judge_sampling

DATA = read_questions("builtin:arithmetic", limit=4)
DRAWN = SampleSettings(batch_size=2, max_new_tokens=24, temperature=3.0, seed=4)
"""Drawn answers hold ids that no tokenizer would choose for their text."""
SEEN = {
    "prefix-tokenised-again": "KL at answer token",
    "samples-lost-on-resume": "'arithmetic/train/0/0' was marked as done, and its samples are not there",
    "processed-scores": "KL at answer token",
}


@pytest.mark.parametrize("name", SAMPLING_FAULTS)
def test_a_planted_defect_is_seen_and_says_where(name, expert, amateur):
    found = judge_sampling(name, expert, amateur, DATA, settings=DRAWN)
    assert found.caught
    assert SEEN[name] in str(found.finding)


def test_without_a_defect_nothing_is_found(expert, amateur):
    found = judge_sampling(None, expert, amateur, DATA, settings=DRAWN)
    assert (found.caught, found.finding) == (False, None)


def test_an_unknown_defect_is_refused(expert, amateur):
    with pytest.raises(ConfigError, match="prefix-tokenised-again"):
        judge_sampling("prefix-tokenized-again", expert, amateur, DATA)
