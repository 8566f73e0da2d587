"""Lessons: what is tuned, what it costs, and that the baselines have the same budget."""

from __future__ import annotations

import pytest
import torch

from tests.support.lessons import lessons, store
from twinrun.contrast.lesson import Lesson, Packed
from twinrun.contrast.lessons import Cost, contrast_lessons, sft_lessons, split, uniform_lessons
from twinrun.contrast.loss import apart, soft_kl
from twinrun.contrast.store import Sampled
from twinrun.errors import ConfigError, SamplesError

ONE = (((1,), (1.0,)),)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, amateur) -> list[Sampled]:
    return list(store(tmp_path_factory.mktemp("samples"), amateur).sampled())


@pytest.mark.parametrize(
    ("steps", "labels", "start", "message"),
    [
        ((3,), ONE, 2, "step 3 is not in its answer of 2 tokens"),
        ((-1,), ONE, 2, "step -1 is not in its answer"),
        ((0, 0), ONE * 2, 2, "steps must ascend"),
        ((1, 0), ONE * 2, 2, "steps must ascend"),
        ((0,), ONE * 2, 2, "1 steps with 2 labels"),
        ((), (), 2, "0 steps"),
        ((0,), ONE, 0, "start=0"),
        ((0,), ONE, 5, "start=5"),
    ],
)
def test_a_lesson_without_a_place_is_refused(steps, labels, start, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Lesson(prompt_id="a", ids=(1, 2, 3, 4), start=start, steps=steps, labels=labels)


def test_a_packed_batch_holds_each_text_up_to_its_last_tuned_position() -> None:
    first = Lesson(prompt_id="a", ids=(10, 11, 12, 13, 14), start=2, steps=(0, 1), labels=ONE * 2)
    second = Lesson(prompt_id="b", ids=(20, 21), start=1, steps=(0,), labels=(((5, 6), (0.75, 0.25)),))
    batch = Packed.of([first, second])
    assert batch.input_ids.tolist() == [[10, 11, 12, 20]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0]]
    assert batch.rows.tolist() == [1, 2, 3]
    assert batch.label_ids.tolist() == [[1, 0], [1, 0], [5, 6]]
    assert batch.label_weights.tolist() == [[1, 0], [1, 0], [0.75, 0.25]]
    assert [part.rows.tolist() for part in apart(batch)] == [[1, 2], [0]]
    with pytest.raises(ConfigError, match="at least one lesson"):
        Packed.of([])


def test_soft_kl_is_zero_at_the_label_itself_and_survives_fillers_of_probability_zero() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0]])
    ids, weights = torch.tensor([[1, 2, 0]]), torch.tensor([[0.5, 0.5, 0.0]])
    assert soft_kl(logits, ids, weights).tolist() == [0.0]
    assert soft_kl(logits.bfloat16(), ids, weights).dtype == torch.float32
    assert soft_kl(logits.double(), ids, weights).dtype == torch.float64
    assert soft_kl(logits, torch.tensor([[0, 1, 2]]), torch.tensor([[0.5, 0.5, 0.0]])).item() == float("inf")


def test_forward_tokens_are_counted() -> None:
    lesson = Lesson(prompt_id="a", ids=tuple(range(10)), start=4, steps=(0, 2, 3), labels=ONE * 3)
    assert Cost.of([lesson, lesson]) == Cost(
        lessons=2, steps=6, packed=14, row_per_step=34
    )  # 2 * (4 + 6 + 7)
    assert Cost.of([lesson]).saved == 17 / 7


def test_baselines_tune_as_many_tokens_in_as_many_lessons(sampled) -> None:
    mine = contrast_lessons(sampled, 0.4)
    sizes = [len(x.steps) for x in mine]
    drawn = uniform_lessons(sampled, 0.4, seed=3)
    assert [len(x.steps) for x in drawn] == sizes
    assert [x.prompt_id for x in drawn] == [x.prompt_id for x in mine]
    assert [x.steps for x in drawn] != [x.steps for x in mine]
    assert drawn == uniform_lessons(sampled, 0.4, seed=3) != uniform_lessons(sampled, 0.4, seed=4)
    sft = sft_lessons(sampled, 0.4, lambda t: t.index % 2 == 0)
    assert len(sft) == len(mine)
    assert 0 <= sum(sizes) - sum(len(x.steps) for x in sft) <= max(sizes)


def test_sft_tunes_right_answers_whole_and_on_their_own_tokens(sampled) -> None:
    found = sft_lessons(sampled, 0.0, lambda t: t.index in (1, 4))
    told = {s.trajectory.prompt_id: s.trajectory for s in sampled}
    seen: dict[str, list[int]] = {}
    for lesson in found:
        answer = told[lesson.prompt_id]
        assert answer.index in (1, 4)
        assert [ids for ids, _ in lesson.labels] == [(answer.answer_ids[i],) for i in lesson.steps]
        seen.setdefault(lesson.prompt_id, []).extend(lesson.steps)
    for name, steps in seen.items():
        length = len(told[name].answer_ids)
        assert steps[:length] == list(
            range(length)
        )  # from the first token to the last, before it begins again
    with pytest.raises(SamplesError, match="no answer of the expert is right"):
        sft_lessons(sampled, 0.4, lambda _: False)


def test_uniform_needs_the_steps_that_contrast_leaves_out(tmp_path, amateur) -> None:
    few = list(store(tmp_path / "few", amateur, every_step=False).sampled())
    with pytest.raises(SamplesError, match="nothing to draw from"):
        uniform_lessons(few, 0.4)
    with pytest.raises(SamplesError, match=r"no steps with KL above 5\.0"):
        contrast_lessons(few, 5.0)


def test_problems_never_stand_on_both_sides() -> None:
    many = [x for seed in range(30) for x in lessons(50, seed)]
    renamed = [
        Lesson(prompt_id=f"{i // 2}", ids=x.ids, start=x.start, steps=x.steps, labels=x.labels)
        for i, x in enumerate(many)
    ]
    train, kept = split(renamed, 0.3, seed=1)
    assert {x.prompt_id for x in train} & {x.prompt_id for x in kept} == set()
    assert len(train) + len(kept) == len(renamed)
    assert 0.15 < len(kept) / len(renamed) < 0.45
    assert split(renamed, 0.3, seed=1) == (train, kept) != split(renamed, 0.3, seed=2)
    assert split(renamed, 0.0) == (renamed, [])
    with pytest.raises(SamplesError, match="split into"):
        split(renamed[:1], 0.3)
