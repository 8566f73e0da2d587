"""Samples from files and tasks: fields, ids, hashes, and every bad line in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import twinrun as tr
from tests.support.prune_tiny import jsonl, tiny_llama
from tests.support.tiny import tiny_folder
from twinrun.errors import ConfigError
from twinrun.prune.jsonl import JsonLines
from twinrun.prune.samples import each
from twinrun.prune.task_samples import SOURCES, TaskSamples, TaskSettings

DOLLY = {
    "instruction": "Who has three?",
    "context": "Tom has three apples.",
    "response": "Tom",
    "category": "qa",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tr.Model:
    return tr.load(tiny_folder(tmp_path_factory.mktemp("tiny")))


def test_dolly_and_plain_rows_become_prompt_and_answer(model: tr.Model, tmp_path: Path) -> None:
    plain = {"prompt": "One and two are", "answer": " three"}
    path = jsonl(tmp_path / "a.jsonl", [DOLLY, plain, {**DOLLY, "context": ""}])
    first, second, third = each(JsonLines(model, path))
    assert model.decode(first.prompt) == "Tom has three apples.\n\nWho has three?\n"
    assert model.decode(first.answer) == "Tom"
    assert first.answer[-1] == model.tokenizer.eos_token_id
    assert model.decode(second.prompt) == "One and two are"
    assert model.decode(third.prompt) == "Who has three?\n"
    assert [s.name for s in (first, second, third)] == ["a.jsonl line 1", "a.jsonl line 2", "a.jsonl line 3"]
    assert len({s.hash for s in (first, second, third)}) == 3
    (chat,) = each(JsonLines(model, path, limit=1, chat=True, begin="So: "))
    assert list(chat.prompt) == model.chat("So: Tom has three apples.\n\nWho has three?\n")


BAD = {
    "no json": ('{"prompt": "a"', "line 2 is not valid JSON"),
    "no object": ("[1]", "line 2 is list, not a JSON object"),
    "no answer": ('{"prompt": "a"}', "line 2 has no text in 'answer'"),
    "a number": ('{"prompt": 7, "answer": "b"}', "line 2 has no text in 'prompt'"),
    "no response": ('{"instruction": "a"}', "line 2 has no text in 'response'"),
    "empty answer": ('{"prompt": "a", "answer": " "}', "line 2 has an empty answer"),
    "empty prompt": ('{"prompt": "", "answer": "b"}', "line 2: the prompt '' has no tokens"),
    "too long": ('{"prompt": "' + "a b " * 600 + '", "answer": "b"}', "line 2 has .* more than the context"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(model: tr.Model, tmp_path: Path, case: str) -> None:
    line, message = BAD[case]
    path = tmp_path / "b.jsonl"
    path.write_text('{"prompt": "fine", "answer": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        JsonLines(model, path)
    assert "\n" not in str(caught.value)
    assert "b.jsonl line 2" in str(caught.value)


def test_long_lines_can_be_left_out_and_the_others_keep_their_names(model: tr.Model, tmp_path: Path) -> None:
    rows = [{"prompt": "x " * 700, "answer": "y"}, {"prompt": "short", "answer": "y"}]
    found = JsonLines(model, jsonl(tmp_path / "c.jsonl", rows), too_long="skip")
    assert (len(found), found.skipped, found[0].name) == (1, 1, "c.jsonl line 2")
    with pytest.raises(ConfigError, match="holds no sample"):
        JsonLines(model, jsonl(tmp_path / "d.jsonl", rows[:1]), too_long="skip")
    with pytest.raises(ConfigError, match="cannot read"):
        JsonLines(model, tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="without a tokenizer"):
        JsonLines(tiny_llama(), tmp_path / "c.jsonl")


@pytest.mark.parametrize("source", ["arithmetic", "retrieval", "niah_single"])
def test_tasks_are_random_access_and_splits_differ(model: tr.Model, source: str) -> None:
    one, two, held = (
        TaskSamples(model, TaskSettings(source=source, samples=6, tokens=480, split=split))
        for split in ("train", "train", "heldout")
    )
    assert [s.hash for s in each(one)] == [two[i].hash for i in range(6)]
    assert not {s.hash for s in each(one)} & {s.hash for s in each(held)}
    assert len({s.name for s in each(one)}) == 6
    assert one.identity == two.identity != held.identity
    if source != "arithmetic":
        assert all(len(s) <= 490 for s in each(one))
        assert len({len(s) for s in each(one)}) > 1


def test_wrong_tasks_are_refused(model: tr.Model) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'niah_single'"):
        TaskSettings(source="niah_singel", samples=1)
    with pytest.raises(ConfigError, match="exceeds the context"):
        TaskSamples(model, TaskSettings(source="retrieval", samples=1, tokens=9999))
    with pytest.raises(ConfigError, match="at least 1"):
        TaskSettings(source="arithmetic", samples=0)
    assert "frequent_words" in SOURCES
