"""LongBench's metrics against the packages that the official evaluation calls, where these are installed."""

from __future__ import annotations

from random import Random

import pytest

from twinrun.tasks import longbench_metrics as m
from twinrun.tasks.longbench_rouge import edit_similarity, rouge_l

WORDS = [
    "a",
    "the",
    "cat",
    "sat",
    "on.",
    "mat",
    ".",
    "",
    ",",
    "Number",
    "12",
    "x1",
    "return",
    "==",
    "\n",
    "天气",
    "很好",
    "公园。",
]


def texts(count: int) -> list[tuple[str, str]]:
    pick = Random(0)
    return [
        (
            " ".join(pick.choices(WORDS, k=pick.randint(0, 30))),
            " ".join(pick.choices(WORDS, k=pick.randint(1, 30))),
        )
        for _ in range(count)
    ]


def test_rouge_l_is_that_of_the_package() -> None:
    rouge = pytest.importorskip("rouge").Rouge()
    wrong = 0
    for said, wanted in texts(400):
        try:
            official = rouge.get_scores([said], [wanted], avg=True)["rouge-l"]["f"]
        except ValueError:
            official = 0.0
        assert rouge_l(said, wanted) == pytest.approx(official, abs=1e-12)
        wrong += abs(m.qa_f1(said, wanted) - official) > 1e-6
    assert wrong > 100  # the control: another metric does not pass


@pytest.mark.filterwarnings("ignore:Using slow pure-python")
def test_edit_similarity_is_that_of_the_package() -> None:
    fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    for said, wanted in texts(400):
        assert edit_similarity(said, wanted) == fuzz.ratio(said, wanted) / 100


@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_chinese_is_scored_by_words() -> None:
    pytest.importorskip("jieba")
    assert m.qa_f1_zh("今天天气很好。", "今天天气很好") == 1
    assert 0 < m.qa_f1_zh("今天天气不好", "今天天气很好") < 1
    assert m.rouge_zh("今天天气很好", "今天天气很好") == pytest.approx(1, abs=1e-7)
    assert m.qa_f1_zh("公园", "天气") == 0
