"""Retrieval texts: deterministic, disjoint splits, and answers that an independent reader of the text confirms."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from twinrun.errors import ConfigError
from twinrun.tasks.retrieval import (
    MULTIKEY,
    TASKS,
    Retrieval,
    RetrievalSettings,
    answer_text,
    fit_size,
    is_exact,
    question_text,
    recall,
    retrieval,
    split_of,
)
from twinrun.tasks.words import TOTAL, word


def settings(task: str, size: int = 40, **more: object) -> RetrievalSettings:
    return RetrievalSettings(task=task, size=size, **more)


def read(item: Retrieval) -> list[tuple[str, ...]]:
    """The answers to all questions, found in the text itself without the code that told it."""
    text, found = item.context, []
    for asked in item.asked:
        match item.settings.task:
            case "niah_single" | "niah_multikey" | "niah_multikey_uuid":
                key = re.search(r"for (\S+) mentioned", asked.question)[1]
                values = re.findall(rf"magic \w+ for {re.escape(key)} is: ([\w-]+)\.", text)
                assert len(values) == 1
                found.append((values[0],))
            case "variable_tracking":
                value = re.search(r"value (\d+) in", asked.question)[1]
                known = re.findall(rf"VAR (\w+) = {value}\.", text)
                while more := re.findall(rf"VAR (\w+) = VAR {known[-1]}\.", text):
                    known += more
                found.append(tuple(known))
            case "common_words":
                counts = Counter(re.findall(r"\d+\. (\S+)", text))
                found.append(tuple(sorted(w for w, _ in counts.most_common(10))))
            case "frequent_words":
                counts = Counter(w for w in text.splitlines()[1].split() if w != "...")
                found.append(tuple(w for w, _ in counts.most_common(3)))
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_an_independent_reader_finds_the_same_answers(task: str, split: str) -> None:
    for index in range(12):
        item = retrieval(index, settings(task, 60, digits=5, split=split))
        assert read(item) == [asked.answers for asked in item.asked]
        assert is_exact(item.answer_text, item)
        assert recall(item.answer_text, item) == 1
        assert all(split_of(asked) == split for asked in item.asked)


@pytest.mark.parametrize("task", ["niah_multikey", "variable_tracking"])
def test_the_reader_refuses_a_text_whose_needle_was_changed(task: str) -> None:
    """The control of the test above."""
    item = retrieval(1, settings(task, 20, digits=6))
    spoilt = replace(item, context=item.context.replace(item.answers[-1], "0", 1))
    assert read(item) == [item.answers]
    assert read(spoilt) != [item.answers]


@pytest.mark.parametrize("task", TASKS)
def test_the_same_arguments_give_the_same_text_in_any_order(task: str) -> None:
    plan = settings(task, 30)
    backwards = {i: retrieval(i, plan) for i in (5, 3, 0)}
    assert all(retrieval(i, plan) == item for i, item in backwards.items())
    assert len({item.context for item in backwards.values()}) == 3
    assert retrieval(3, replace(plan, seed=1)).context != backwards[3].context


def test_train_and_held_out_never_share_a_question_with_its_answer() -> None:
    pairs = {}
    for split in ("train", "heldout"):
        plan = settings("niah_multikey", 12, digits=1, queries=4, split=split)
        pairs[split] = {(a.question, a.answers) for i in range(150) for a in retrieval(i, plan).asked}
    assert len(pairs["train"]) > 500
    assert not pairs["train"] & pairs["heldout"]


def test_several_questions_about_one_text_are_different() -> None:
    for task in MULTIKEY:
        item = retrieval(4, settings(task, 30, queries=10))
        assert len({asked.question for asked in item.asked}) == 10
        assert read(item) == [asked.answers for asked in item.asked]
        for asked in item.asked:
            assert (
                question_text(asked) + answer_text(asked)
                == f"{asked.question}\n{asked.answer_prefix} {asked.answers[0]}"
            )


def test_needles_stand_anywhere_in_the_noise() -> None:
    """Depth of the needle over many texts: from the beginning to the end, about evenly."""
    depths = []
    for index in range(200):
        text = retrieval(index, settings("niah_single", 50)).context
        depths.append(text.index("One of the special") / len(text))
    assert min(depths) < 0.1
    assert max(depths) > 0.9
    assert 0.4 < sum(depths) / len(depths) < 0.6


def test_a_chain_has_one_name_more_than_steps_and_is_told_in_order() -> None:
    for hops in (1, 4, 9):
        item = retrieval(0, settings("variable_tracking", 30, hops=hops))
        places = [item.context.index(f"VAR {name} =") for name in item.answers]
        assert len(places) == hops + 1
        assert places == sorted(places)


def test_frequent_words_differ_in_frequency() -> None:
    """No tie decides an answer, however short the text."""
    for size in (10, 17, 50, 400):
        for index in range(5):
            counts = Counter(
                retrieval(index, settings("frequent_words", size)).context.splitlines()[1].split()
            )
            (dots, most), *rest = counts.most_common(5)
            times = [most, *(count for _, count in rest)]
            assert dots == "..."
            assert times[0] > times[1] > times[2] > times[3] > (times[4] if len(times) > 4 else 0)


@pytest.mark.parametrize("task", TASKS)
def test_the_size_that_fits_is_the_largest(task: str) -> None:
    def count(text: str) -> int:
        return len(text.split())

    plan = settings(task, 10, digits=5)
    size = fit_size(plan, 700, count)

    def words(size: int) -> int:
        item = retrieval(0, replace(plan, size=size))
        return count(item.prompt + item.answer_text)

    assert words(size) <= 700 < words(size + 1)
    with pytest.raises(ConfigError, match="give it more room"):
        fit_size(plan, 9, count)


def test_scores() -> None:
    item = retrieval(0, settings("variable_tracking", 5, hops=3))
    names = item.answers
    assert recall(f"They are {names[0].lower()} and {names[2]}.", item) == 0.5
    assert recall("", item) == 0
    assert not is_exact(" " + ", ".join(reversed(names)), item)
    assert not is_exact(item.answer_text + ", XXXXX", item)
    assert is_exact(item.answer_text + "\nmore", item)
    assert not is_exact("", item)


def test_words_are_all_different() -> None:
    assert len({word(i) for i in range(TOTAL)}) == TOTAL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "niah_singel"}, "no retrieval task named 'niah_singel'.*niah_single"),
        ({"size": 0}, "size of niah_single must be 1 or larger, got 0"),
        ({"task": "frequent_words", "size": 9}, "10 or larger, got 9"),
        ({"task": "niah_multikey", "size": 6001}, "1 to 6000, got 6001"),
        ({"digits": 0}, "digits must be 1 to 12, got 0"),
        ({"hops": 17}, "hops must be 1 to 16, got 17"),
        ({"queries": 2}, "queries of niah_single at size 4 must be 1 to 1, got 2"),
        ({"task": "niah_multikey", "queries": 3}, "at size 4 must be 1 to 2, got 3"),
        ({"split": "test"}, "no split named 'test'"),
    ],
)
def test_a_wrong_request_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RetrievalSettings(**({"task": "niah_single", "size": 4} | changes))
    with pytest.raises(ConfigError, match="index must be 0 or larger, got -1"):
        retrieval(-1, settings("niah_single"))
