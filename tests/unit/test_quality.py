"""Evaluation: answers equal plain generation, the same items for every side, pairs, resume after a kill."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import twinrun as tr
from tests.support.seen_needle import Marked, SeenNeedle
from twinrun.errors import ConfigError, ShapeError
from twinrun.quality import evaluate as room
from twinrun.quality.answer import answer
from twinrun.quality.evaluate import evaluate
from twinrun.quality.longbench import long_items
from twinrun.quality.paired import interval, paired, sign_p
from twinrun.quality.ruler import ruler_items
from twinrun.quality.settings import EvalSettings
from twinrun.quality.sides import parse_schedule, pruned_side, runner_named, schedule_of

ASKED = EvalSettings(tasks=("niah_single",), lengths=(176,), items=3, answer_tokens=4, digits=3)
KEYS = ("cells", "overall", "pairs")


def bare(found) -> dict:
    """A record without times."""
    return {
        key: [{k: v for k, v in row.items() if k != "seconds"} for row in getattr(found, key)] for key in KEYS
    }


def test_answers_are_those_of_plain_generation_and_rows_do_not_see_each_other(expert: tr.Model) -> None:
    items = ruler_items(expert, "niah_single", 176, replace(ASKED, answer_tokens=6))
    runner = tr.KVCache(expert)
    together = answer(runner, items)
    for item, found in zip(items, together, strict=True):
        alone = runner.generate([*item.prompt, *item.then], 6).tokens[0]
        assert list(found.ids) == alone == list(answer(runner, [item])[0].ids)
        assert found.cache_lengths[0] >= len(item.prompt)
    shifted = replace(items[1], then=items[1].then[:-1])  # the control: another question, another answer
    assert answer(runner, [shifted])[0].ids != together[1].ids


def test_a_question_behind_the_context_is_the_same_text_for_a_runner_that_prunes_nothing(
    expert: tr.Model,
) -> None:
    end, unseen = ruler_items(expert, "variable_tracking", 400, replace(ASKED, items=1))
    assert expert.decode(end.prompt) == expert.decode([*unseen.prompt, *unseen.then])
    assert unseen.then
    assert len(unseen.prompt) < len(end.prompt) <= 400 - 4
    assert unseen.score("nothing") == {"score": 0.0, "exact": 0.0}
    assert end.score(str(expert.decode(end.right)))["exact"] == 1


def test_only_the_context_is_pruned_where_the_question_is_unseen(expert: tr.Model) -> None:
    runner = tr.Pruned(expert, selector="recency", schedule={1: 0.5})
    for item in ruler_items(expert, "niah_single", 176, replace(ASKED, items=1)):
        found = answer(runner, [item])[0]
        assert found.cache_lengths[0] == len(item.prompt)
        assert found.cache_lengths[1] == -(-len(item.prompt) // 2)
        assert runner.last.lengths == (len(item.prompt),)


def test_a_selector_that_drops_the_needle_scores_lower(expert: tr.Model) -> None:
    sides = {
        "none": tr.KVCache(expert),
        **{
            name: SeenNeedle(expert, selector=Marked(keeps=keeps), schedule={1: 0.6}, protect_last=8)
            for name, keeps in (("kind", True), ("unkind", False))
        },
    }
    found = evaluate(sides, replace(ASKED, batch=2, items=6, modes=("unseen",)))
    scores = {row["side"]: row["score"] for row in found.overall}
    assert scores["kind"] == 1.0
    assert scores["unkind"] <= 0.5
    pair = next(p for p in found.pairs if (p["a"], p["b"], p["task"]) == ("unkind", "kind", None))
    assert pair["difference"] <= -0.5
    assert pair["is_clear"]
    kept = next(row for row in found.overall if row["side"] == "kind")
    assert kept["last_keep"] == pytest.approx(0.6, abs=0.02)
    told = "right in under 5 % of niah_single: nothing can be lost"
    assert told in found.to_markdown()  # this model cannot do the task, were it not for the marks
    able = [{**c, "score": 0.5} if c["side"] == "none" else c for c in found.cells]
    assert told not in replace(found, cells=able).to_markdown()


def test_the_oracle_is_shown_the_answer(expert: tr.Model) -> None:
    side = pruned_side(expert, "oracle", schedule_of(expert, None, "1:0.5"))
    items = ruler_items(expert, "niah_single", 176, replace(ASKED, items=2))
    assert len(answer(side, items)) == 4
    with pytest.raises(ConfigError, match="was not shown any items"):
        pruned_side(expert, "oracle", side.schedule).score(list(range(30, 60)), 20)


def test_a_killed_run_goes_on_with_nothing_lost_or_repeated(
    expert: tr.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {"none": tr.KVCache(expert), "pruned": tr.Pruned(expert, selector="recency", schedule={1: 0.5})}
    asked = replace(ASKED, batch=2)
    whole = evaluate(sides, asked, out=tmp_path / "whole")
    calls, real = itertools.count(), room.answer

    def dies(side, lot):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(side, lot)

    monkeypatch.setattr(room, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(sides, asked, out=tmp_path / "cut")
    place = tmp_path / "cut" / "answers.0.jsonl"
    with open(place, "a", encoding="utf-8") as file:
        file.write('{"side": "none", "key": "half a li')  # what a kill in the middle of a write leaves
    before = place.read_text().count("\n")
    monkeypatch.setattr(room, "answer", real)
    assert bare(evaluate(sides, asked, out=tmp_path / "cut", resume=True)) == bare(whole)
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    assert len(lines) == 2 * 2 * 3 > before > 0
    assert len({(row["side"], row["key"]) for row in lines}) == len(lines)


def test_a_folder_of_another_request_or_a_damaged_one_is_refused(expert: tr.Model, tmp_path: Path) -> None:
    sides = {"none": tr.KVCache(expert)}
    evaluate(sides, ASKED, out=tmp_path)
    with pytest.raises(ConfigError, match="already holds"):
        evaluate(sides, ASKED, out=tmp_path)
    with pytest.raises(ConfigError, match="another request: seed is 0 there and 1 here"):
        evaluate(sides, replace(ASKED, seed=1), out=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="give out"):
        evaluate(sides, ASKED, resume=True)
    place = tmp_path / "answers.0.jsonl"
    place.write_text("{}\n" + place.read_text())
    with pytest.raises(ConfigError, match="line 1 is damaged"):
        evaluate(sides, ASKED, out=tmp_path, resume=True)


def test_what_does_not_fit_is_recorded_and_the_rest_goes_on(expert: tr.Model) -> None:
    class Broken(tr.KVCache):
        def start(self, rows, new_tokens):
            raise RuntimeError("boom")

    limit = expert.max_context
    asked = replace(ASKED, lengths=(176, limit + 200), items=1, modes=("end",))
    found = evaluate({"none": tr.KVCache(expert), "broken": Broken(expert)}, asked)
    status = {(c["side"], c["length"]): c["status"] for c in found.cells}
    assert status == {
        ("none", 176): "done", ("none", limit + 200): "too long",
        ("broken", 176): "failed", ("broken", limit + 200): "too long",
    }  # fmt: skip
    assert not found.passed
    assert "boom" in found.to_markdown()
    with pytest.raises(ConfigError, match="no text of niah_single fits into 16 tokens"):
        evaluate({"none": tr.KVCache(expert)}, replace(ASKED, lengths=(16,)))


def exact_interval(values: list[float]) -> tuple[float, float]:
    """All n**n resamples of a few values, none left out."""
    means = sorted(sum(s) / len(s) for s in itertools.product(values, repeat=len(values)))
    return means[int(0.025 * len(means))], means[int(0.975 * len(means))]


def test_bootstrap_agrees_with_all_resamples() -> None:
    values = [0.0, 0.1, 0.5, 0.6, 1.0]
    low, high = interval(values, [0] * 5)
    assert (low, high) == pytest.approx(exact_interval(values), abs=0.03)
    assert interval([0.0] * 5 + [1.0] * 5, [0] * 5 + [1] * 5) == (0.5, 0.5)  # strata are not mixed


def test_pairs_are_paired_and_the_sign_test_is_exact() -> None:
    pick = Random(0)
    level = [pick.random() for _ in range(40)]
    better = [x + 0.05 for x in level]
    found = paired(better, level, [0] * 40)
    assert found["is_clear"]
    assert found["low"] == pytest.approx(0.05)
    assert found["better"] == 40
    shuffled = level[1:] + level[:1]  # the control: the same numbers, not paired, say nothing
    assert not paired([x + 0.05 for x in shuffled], level, [0] * 40)["is_clear"]
    assert sign_p(3, 1) == pytest.approx(2 * (1 + 4) / 16)
    with pytest.raises(ShapeError, match="40 scores against 39"):
        paired(level, level[1:], [0] * 40)


def test_longbench_items_are_cut_wrapped_and_split(expert: tr.Model, tmp_path: Path) -> None:
    row = {"input": "Which?", "context": "word " * 400, "answers": ["word"], "all_classes": ["word"]}
    for task in ("multifieldqa_en", "trec", "samsum"):
        (tmp_path / f"{task}.jsonl").write_text(json.dumps(row) + "\n")
    asked = EvalSettings(tasks=("longbench:multifieldqa_en",), lengths=(300,), data=str(tmp_path))
    end, unseen = long_items(expert, "longbench:multifieldqa_en", 300, asked)
    text = expert.tokenizer.decode(list(end.prompt))
    assert text == expert.tokenizer.decode([*unseen.prompt, *unseen.then])
    assert text.startswith("<|user|>")
    assert "Which?" in expert.tokenizer.decode(list(unseen.then))
    assert "Which?" not in expert.tokenizer.decode(list(unseen.prompt))
    assert abs(len(end.prompt) - 300) < 20
    plain = long_items(expert, "longbench:trec", 300, asked)[0]
    assert "<|user|>" not in expert.tokenizer.decode(list(plain.prompt))
    line = long_items(expert, "longbench:samsum", 300, asked)[0]
    assert line.ends
    assert line.least == 1
    runner, short = tr.KVCache(expert), replace(line, max_new_tokens=3, ends=frozenset())
    likeliest = answer(runner, [short])[0].ids[0]
    ended = answer(runner, [replace(short, least=0, ends=frozenset([likeliest]))])[0]
    assert ended.ids == (likeliest,)
    assert answer(runner, [replace(short, ends=frozenset([likeliest]))])[0].ids[0] != likeliest
    with pytest.raises(ConfigError, match="longer than half of 20 tokens"):
        long_items(expert, "longbench:multifieldqa_en", 20, asked)


REFUSED = {
    "task": ({"tasks": ["niah"]}, "no task named 'niah'"),
    "mode": ({"modes": ["start"]}, "is end or unseen, got 'start'"),
    "length": ({"lengths": [8]}, "lengths start at 16 tokens, got 8"),
    "twice": ({"lengths": [64, 64]}, "64 is given twice in lengths"),
    "items": ({"items": 0}, "items must be at least 1, got 0"),
    "chat": ({"chat": "maybe"}, "chat is auto or on or off"),
    "data": ({"tasks": ["longbench"]}, "LongBench's texts are not part of this package"),
    "unknown": ({"size": 1}, "unknown setting 'size'"),
    "none": ({"tasks": []}, "no tasks; give at least one"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalSettings.of(given)


def test_sides_by_name(expert: tr.Model) -> None:
    assert parse_schedule("1:0.5,2:30") == {1: 0.5, 2: 30}
    runner = runner_named(expert, "pruned", {"selector": "random", "schedule": "1:0.5/2:0.4", "seed": 3})
    assert runner.schedule.kept(100) == (50, 40)
    assert runner_named(expert, "single-pass", {}).name == "single-pass"
    for call, message in (
        (lambda: parse_schedule("1=0.5"), "no layer:keep pair"),
        (lambda: parse_schedule("1:0.5,1:0.4"), "layer 1 is given twice"),
        (lambda: schedule_of(expert, 0.9, "1:0.5"), "give one of them"),
        (lambda: runner_named(expert, "kv-cache", {"keep": 0.9}), "only the runner 'pruned' takes these"),
        (lambda: runner_named(expert, "pruned", {"keep": 0.9}), "needs a scorer, or a selector"),
        (lambda: pruned_side(expert, "learned", schedule_of(expert, None, "1:0.5")), "needs trained scorers"),
        (lambda: evaluate({}, ASKED), "no sides"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
