"""Examining models: problems, answers, and differences with intervals against an own bootstrap and an own sign test."""

from __future__ import annotations

import json
from itertools import combinations
from math import comb
from random import Random

import pytest

from twinrun.contrast.evaluate import Answers, AnswerSettings, answer_all, compare
from twinrun.contrast.exam import ExamItem, ExamSettings, exam, judge_by, references
from twinrun.contrast.samples import Trajectory
from twinrun.errors import ConfigError, SamplesError
from twinrun.tasks.arithmetic import split_of
from twinrun.tasks.final_answer import same_answer


def answers(right: list[int]) -> Answers:
    return Answers(texts=("",) * len(right), right=tuple(map(bool, right)), finished=(True,) * len(right))


def items(count: int) -> list[ExamItem]:
    return [ExamItem(prompt_id=f"{i}", question="q", reference="1", stratum="all") for i in range(count)]


def test_generated_problems_are_held_out_and_as_many_as_asked_for() -> None:
    found = exam(ExamSettings(limit=40, steps=(1, 2)))
    assert len(found) == len({x.question for x in found}) == 40
    assert {split_of(x.question) for x in found} == {"heldout"}
    assert {x.stratum for x in found} == {"1 steps", "2 steps"}
    assert all(x.marked_only and x.is_right(x.reference) for x in found)


def test_a_file_in_the_layout_of_gsm8k(tmp_path) -> None:
    path = tmp_path / "some.jsonl"
    rows = [
        {"question": "How many?", "answer": "3+4=7\n#### 7"},
        {"id": "b", "question": "And?", "answer": 8},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    first, second = exam(ExamSettings(source=str(path)))
    assert first.is_right("the answer is 7.0")
    assert not first.is_right("7 apples, 8 pears")
    assert second.prompt_id == "b"
    assert len(exam(ExamSettings(source=str(path), limit=1))) == 1
    assert references(str(path), ["b"]) == {"b": "8"}
    with pytest.raises(SamplesError, match="no answer for problem 'c'"):
        references(str(path), ["c"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"bad\.jsonl line 2 is not valid JSON"),
        ('{"question": "q"}', r"bad\.jsonl line 2 has no text under 'question' and 'answer'"),
        (
            '{"question": "q", "answer": "no number"}',
            r"bad\.jsonl line 2: the answer 'no number' ends in no number",
        ),
        (
            '{"id": "a", "question": "other", "answer": "1"}',
            r"bad\.jsonl line 2: id 'a' stands for another question",
        ),
        ("[]", r"bad\.jsonl line 2 has no text"),
    ],
)
def test_lines_that_are_no_problem_are_named(tmp_path, line, message) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "question": "q", "answer": "1"}\n' + line + "\n")
    with pytest.raises(SamplesError, match=message):
        exam(ExamSettings(source=str(path)))


def test_settings_out_of_range_are_refused(tmp_path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for wrong in ({"limit": 0}, {"steps": (0, 2)}, {"steps": (3, 2)}):
        with pytest.raises(ConfigError):
            ExamSettings(**wrong)
    with pytest.raises(ConfigError, match="holds no problem"):
        exam(ExamSettings(source=str(tmp_path / "empty.jsonl")))
    with pytest.raises(SamplesError, match="cannot read"):
        exam(ExamSettings(source=str(tmp_path / "absent.jsonl")))
    with pytest.raises(ConfigError, match="batch_size"):
        AnswerSettings(batch_size=0)
    with pytest.raises(ConfigError, match="nothing was examined"):
        compare(items(1), {})


def test_references_of_generated_problems_by_their_id() -> None:
    (found,) = references("builtin:arithmetic", ["arithmetic/train/3/5"]).values()
    row = Trajectory(
        prompt_id="arithmetic/train/3/5",
        question="",
        prompt_ids=(1,),
        answer_ids=(2,),
        answer=found,
        finished=True,
        index=0,
    )
    is_right = judge_by({"arithmetic/train/3/5": found})
    assert is_right(row)
    assert not is_right(Trajectory(**{**{k: getattr(row, k) for k in row.__slots__}, "finished": False}))
    for name in ("0a1b", "arithmetic/train/x/1", "arithmetic/other/0/1"):
        with pytest.raises(SamplesError, match="is no problem of builtin:arithmetic"):
            references("builtin:arithmetic", [name])


def own_bootstrap(gaps: list[int], draws: int = 4000) -> tuple[float, float]:
    rng = Random(1)
    means = sorted(sum(rng.choices(gaps, k=len(gaps))) / len(gaps) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def own_mcnemar(better: int, worse: int) -> float:
    count = better + worse
    return min(1.0, sum(comb(count, k) for k in range(min(better, worse) + 1)) * 2 / 2**count)


def test_differences_are_paired() -> None:
    rng = Random(0)
    base = [int(rng.random() < 0.7) for _ in range(400)]
    better = [1 if rng.random() < 0.08 else b for b in base]
    found = compare(items(400), {"base": answers(base), "after": answers(better)})
    (pair,) = found["pairs"]
    gaps = [a - b for a, b in zip(better, base, strict=True)]
    low, high = own_bootstrap(gaps)
    assert pair["difference"] == sum(gaps) / 400
    assert pair["low"] == pytest.approx(low, abs=0.006)
    assert pair["high"] == pytest.approx(high, abs=0.006)
    assert pair["sign_p"] == pytest.approx(own_mcnemar(gaps.count(1), gaps.count(-1)))
    assert pair["is_clear"]
    assert found["sides"]["base"]["right"] == sum(base)


def test_shuffled_answers_are_no_gain() -> None:
    """The control: as many right, others right; the interval must hold zero."""
    rng = Random(2)
    base = [int(i < 280) for i in range(400)]
    other = rng.sample(base, 400)
    (pair,) = compare(items(400), {"base": answers(base), "other": answers(other)})["pairs"]
    assert pair["difference"] == 0
    assert pair["low"] < 0 < pair["high"]
    assert not pair["is_clear"]


def test_every_pair_of_sides_is_compared() -> None:
    sides = {name: answers([1, 0, 1]) for name in "abc"}
    found = compare(items(3), sides)["pairs"]
    assert {frozenset((p["a"], p["b"])) for p in found} == {frozenset(c) for c in combinations("abc", 2)}


def test_the_expert_is_examined_whatever_the_batch(expert) -> None:
    chosen = exam(ExamSettings(limit=6))
    seen: list[int] = []
    plan = AnswerSettings(batch_size=4, max_new_tokens=110)
    found = answer_all(expert, chosen, plan, lambda done, _: seen.append(done))
    alone = answer_all(expert, chosen[2:3], AnswerSettings(batch_size=1, max_new_tokens=110))
    assert found.texts[2] == alone.texts[0]
    assert seen == [4, 6]
    assert sum(found.right) >= 4
    assert found.right == tuple(same_answer(t, x.reference) for t, x in zip(found.texts, chosen, strict=True))
