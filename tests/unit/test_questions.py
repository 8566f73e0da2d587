"""Problems of a file: ids, duplicates, malformed lines by file and number, what `--skip-bad` passes over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinrun.contrast.problems import read_questions
from twinrun.errors import ConfigError, MissingBackendError
from twinrun.tasks.arithmetic import split_of

GOOD = '{"id": "a", "question": "How many?", "answer": "7"}'


def file_of(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def test_ids_are_given_or_made_from_the_text(tmp_path):
    path = file_of(
        tmp_path, GOOD, '{"id": 7, "question": "x"}', "", '{"question": "x"}', '{"question": "y", "id": ""}'
    )
    found = read_questions(path)
    assert [q.text for q in found.items] == ["How many?", "x", "x", "y"]
    names = [q.prompt_id for q in found.items]
    assert names[:2] == ["a", "7"]
    assert len(set(names)) == 4
    assert found.items[2].where.endswith("data.jsonl line 4")
    assert read_questions(path) == found


def test_lines_that_say_the_same_again_are_counted_and_taken_once(tmp_path):
    found = read_questions(file_of(tmp_path, GOOD, GOOD, '{"question": "x"}', '{"question": "x"}'))
    assert (len(found.items), found.duplicates) == (2, 2)


def test_one_id_with_two_texts_is_refused_whatever_is_skipped(tmp_path):
    path = file_of(tmp_path, GOOD, '{"id": "a", "question": "How much?"}')
    for skip in (False, True):
        with pytest.raises(ConfigError, match=r"line 2: id 'a' stands for another question at .*line 1"):
            read_questions(path, skip_bad=skip)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "list, not an object"),
        ('{"answer": "7"}', "no text under 'question'"),
        ('{"question": "  "}', "no text"),
        ('{"question": 7}', "no text"),
        ('{"question": "x", "id": [1]}', "'id' is list"),
        ('{"question": "x", "id": true}', "'id' is bool"),
        (b'{"question": "\xff"}', "not valid JSON"),
        ('{"question": "\\ud800"}', "surrogate"),
        ('{"question": "x", "id": "\\ud800"}', "surrogate"),
    ],
)
def test_a_malformed_line_is_named_and_passed_over_only_if_asked_for(tmp_path, line, words):
    path = file_of(tmp_path, GOOD, "", line, '{"question": "z"}')
    with pytest.raises(ConfigError, match=rf"data.jsonl line 3.*{words}.*--skip-bad") as caught:
        read_questions(path)
    assert "\n" not in str(caught.value)
    found = read_questions(path, skip_bad=True)
    assert [q.text for q in found.items] == ["How many?", "z"]
    assert len(found.bad) == 1
    assert "line 3" in found.bad[0]


def test_generated_problems_are_of_the_training_split_and_differ_by_seed():
    found = read_questions("builtin:arithmetic", limit=5)
    assert {split_of(q.text) for q in found.items} == {"train"}
    other = read_questions("builtin:arithmetic", limit=5, seed=1)
    assert not {q.prompt_id for q in found.items} & {q.prompt_id for q in other.items}


def test_gsm8k_is_found_by_its_folder_or_missed_in_one_line(tmp_path, monkeypatch):
    row = {"question": "A made-up question?", "answer": "#### 7"}
    (tmp_path / "gsm8k_train.jsonl").write_text(json.dumps(row))
    monkeypatch.setenv("TWINRUN_DATA", str(tmp_path))
    assert [q.text for q in read_questions("gsm8k").items] == [row["question"]]
    monkeypatch.delenv("TWINRUN_DATA")
    with pytest.raises(MissingBackendError, match="TWINRUN_DATA"):
        read_questions("gsm8k")


def test_sources_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no problem"):
        read_questions(file_of(tmp_path, "", ""))
    with pytest.raises(ConfigError, match="cannot read"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="builtin:arithmetic"):
        read_questions("builtin:arithmetics")
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        read_questions("builtin:arithmetic", limit=0)
