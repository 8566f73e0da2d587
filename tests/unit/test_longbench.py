"""LongBench: metrics against cases done by hand, truncation against a slow oracle, rules of the official files."""

from __future__ import annotations

import json
import zipfile
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinrun.errors import ConfigError, MissingBackendError
from twinrun.tasks import longbench as lb
from twinrun.tasks import longbench_metrics as m
from twinrun.tasks.longbench import LONGBENCH, LongItem, longbench_items, middle_cut
from twinrun.tasks.longbench_rouge import rouge_l

ROW = {"input": "Who?", "context": "Ann {input} met Bo.", "answers": ["Bo", "Bob"], "all_classes": None}


def item(task: str, answers: tuple[str, ...], classes: tuple[str, ...] = ()) -> LongItem:
    return LongItem(
        task=LONGBENCH[task], index=0, context="c", input="q", answers=answers, all_classes=classes
    )


# Worked out on paper from the definitions, not from any code.
HAND = [
    (m.qa_f1, "The cat, sat!", "a cat sat down", (), 2 * 1 * (2 / 3) / (1 + 2 / 3)),
    (m.qa_f1, "cat cat", "cat", (), 2 * 0.5 * 1 / 1.5),
    (m.qa_f1, "the", "dog", (), 0.0),
    (m.count, "12 or 13, surely 13", "13", (), 2 / 3),
    (m.count, "none", "13", (), 0.0),
    (m.retrieval, "Paragraph 7", "Paragraph 7", (), 1.0),
    (m.retrieval, "段落3 或 段落4", "段落4", (), 0.5),
    (m.classification, "Date", "Date", ("Date", "City"), 1.0),
    (m.classification, "Date and City", "Date", ("Date", "City"), 0.5),
    (m.classification, "Other city", "Other city", ("city", "Other city"), 1.0),
    (m.classification, "City", "Date", ("Date", "City"), 0.0),
    # "a" and "ab" are both parts of "abc": the official loop skips "ab" once it took "a" out, so two are left
    (m.classification, "abc", "abc", ("a", "ab", "abc"), 0.5),
    (m.code_similarity, "\n# no\nreturn x", "return x", (), 1.0),
    (m.code_similarity, "```\nabcd", "abef", (), 0.5),
    (m.rouge, "a b c d", "a c", (), 2 * 0.5 * 1 / (1.5 + 1e-8)),
    (m.rouge, "", "a", (), 0.0),
]


@pytest.mark.parametrize(("metric", "said", "wanted", "classes", "value"), HAND)
def test_metrics_agree_with_cases_done_by_hand(metric, said, wanted, classes, value) -> None:
    assert metric(said, wanted, classes) == pytest.approx(value, abs=1e-7)


def test_a_planted_wrong_metric_is_refused() -> None:
    """The control: recall in the place of F1 agrees with fewer of the cases."""

    def recall(said: str, wanted: str, _classes: object = ()) -> float:
        return len(set(said.split()) & set(wanted.split())) / len(wanted.split())

    cases = [(said, wanted, value) for metric, said, wanted, _, value in HAND if metric is m.qa_f1]
    assert any(abs(recall(said, wanted) - value) > 0.01 for said, wanted, value in cases)


def slow_rouge_l(said: str, wanted: str) -> float:
    """Of one sentence without a repeated word: tries every subsequence."""
    a, b = said.split(), wanted.split()
    best = next(
        size
        for size in range(len(a), -1, -1)
        if any(_within([a[i] for i in c], b) for c in combinations(range(len(a)), size))
    )
    p, r = best / len(a), best / len(b)
    return 2 * p * r / (p + r + 1e-8)


def _within(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


words = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=7, unique=True).map(" ".join)


@given(words, words)
def test_rouge_l_agrees_with_a_search_of_all_subsequences(said: str, wanted: str) -> None:
    assert rouge_l(said, wanted) == pytest.approx(slow_rouge_l(said, wanted), abs=1e-12)


def slow_cut(ids: list[int], limit: int) -> list[int]:
    """One token at a time: those that are close enough to an end."""
    half = limit // 2
    if len(ids) <= limit:
        return ids
    return [token for at, token in enumerate(ids) if at < half or at >= len(ids) - half]


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(2, 30))
def test_a_prompt_is_cut_in_its_middle(ids: list[int], limit: int) -> None:
    found = middle_cut(ids, limit, lambda part: "".join(map(str, part)))
    wanted = "".join(map(str, slow_cut(ids, limit)))
    assert (found is None) == (len(ids) <= limit)
    assert found in (None, wanted)
    beginning = "".join(map(str, ids[:limit]))  # the control: what a cut at the end would leave
    assert found is None or found == wanted
    assert found is None or len(set(ids)) == 1 or beginning != wanted or beginning == found


def test_a_cut_at_the_end_is_told_from_one_in_the_middle() -> None:
    ids = list(range(10))
    assert middle_cut(ids, 4, str) == str([0, 1]) + str([8, 9]) != str([0, 1, 2, 3])
    with pytest.raises(ConfigError, match="2 tokens at least, got 1"):
        middle_cut(ids, 1, str)


def test_the_best_reference_counts_and_few_shot_answers_end_with_their_line() -> None:
    assert item("hotpotqa", ("no", "red house")).score("red house") == 1
    assert item("triviaqa", ("Ann",)).score("\nAnn\nQuestion: Bo") == 1
    assert item("hotpotqa", ("Ann",)).score("\nAnn\nQuestion: Bo") < 1


def test_there_are_the_official_tasks_with_their_rules() -> None:
    assert len(LONGBENCH) == 21
    assert {n for n, t in LONGBENCH.items() if not t.chat} == {
        "trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p",
    }  # fmt: skip
    assert {n for n, t in LONGBENCH.items() if t.first_line} == {"trec", "triviaqa", "samsum", "lsht"}
    assert sum(t.max_new_tokens for t in LONGBENCH.values()) == 3168
    for task in LONGBENCH.values():
        assert task.template.count("{context}") == 1


def test_items_are_read_from_folder_zip_and_file(tmp_path: Path) -> None:
    line = json.dumps(ROW)
    (tmp_path / "data").mkdir()
    place = tmp_path / "data" / "qasper.jsonl"
    place.write_text(line + "\n\n" + line + "\n")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as packed:
        packed.write(place, "data/qasper.jsonl")
    for data in (tmp_path, place, tmp_path / "data.zip"):
        found = longbench_items("qasper", data)
        assert [i.index for i in found] == [0, 1]
        assert "Ann {input} met Bo." in found[0].prompt  # what looks like a field in a text stays text
        assert found[0].prompt.endswith(found[0].tail)
        assert found[0].tail.endswith("Question: Who?\n\nAnswer:")
    assert len(longbench_items("qasper", tmp_path, limit=1)) == 1


BAD = {
    "no json": ("{", "line 1 of qasper.jsonl is not valid JSON"),
    "no field": ('{"input": ""}', "line 1 of qasper.jsonl lacks 'context'"),
    "no answers": (json.dumps({**ROW, "answers": []}), "has no list of answers"),
    "empty": ("", "holds no item of qasper"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_lines_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "qasper.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        longbench_items("qasper", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bad_line_is_named_by_the_file_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"line 1 of mine\.jsonl is not valid JSON"):
        longbench_items("qasper", tmp_path / "mine.jsonl")


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no LongBench task named 'qaspar'. Did you mean 'qasper'"):
        longbench_items("qaspar", tmp_path)
    with pytest.raises(ConfigError, match=r"has no qasper.jsonl"):
        longbench_items("qasper", tmp_path)
    with pytest.raises(ConfigError, match=r"no folder, zip or \.jsonl"):
        longbench_items("qasper", tmp_path / "nowhere")
    monkeypatch.setattr(lb, "HUB", "")
    with pytest.raises(MissingBackendError, match="cannot be fetched from the hub"):
        longbench_items("qasper", "hub")
