"""Sampling of batches: the public algorithm where its ids survive, rows that break, prompts and vocabularies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import twinrun as tr
from tests.support.plain_lightreasoner import Plain
from twinrun.contrast.plan import Plan
from twinrun.contrast.problems import Question, Questions, read_questions
from twinrun.contrast.sample import sample
from twinrun.contrast.sampler import Sampler
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.errors import ConfigError, SamplesError

SHORT = SampleSettings(max_new_tokens=12, batch_size=3)


def questions(*texts: str) -> Questions:
    return Questions(
        items=tuple(Question(prompt_id=t, text=t, where=f"line {i}") for i, t in enumerate(texts, 1))
    )


def batch(sampler: Sampler, found: Questions) -> list[Sampled]:
    return sampler.sample(Plan.of(sampler, found).prompts)


def test_steps_are_those_of_the_public_algorithm_wherever_its_ids_survive(expert, amateur):
    data = read_questions("builtin:arithmetic", limit=4)
    plain = Plain(expert.model, amateur.model, expert.tokenizer)
    sampler = Sampler(expert, amateur, SampleSettings(max_new_tokens=48, first_step=1))
    compared = 0
    for question, ours in zip(data.items, batch(sampler, data), strict=True):
        theirs = plain.answer(question.text, 48)
        assert list(ours.trajectory.prompt_ids) == theirs.prompt_ids
        assert list(ours.trajectory.answer_ids) == theirs.answer_ids
        mine = {s.step: s for s in ours.steps if theirs.survives(s.step)}
        wanted = {s.step: s for s in theirs.steps if theirs.survives(s.step)}
        near = {t for t, kl in enumerate(ours.trajectory.kl) if abs(kl - 0.4) < 1e-3}
        assert set(mine) - near == set(wanted) - near
        for step in mine.keys() & wanted.keys():
            weights = dict(zip(mine[step].token_ids, mine[step].weights, strict=True))
            assert sorted(weights) == wanted[step].token_ids
            assert [weights[i] for i in sorted(weights)] == pytest.approx(wanted[step].weights, abs=1e-3)
            assert mine[step].kl == pytest.approx(wanted[step].kl, rel=1e-3)
            compared += 1
    assert compared > 5


def test_the_first_answer_token_is_a_candidate_unless_told_otherwise(expert, amateur):
    data = read_questions("builtin:arithmetic", limit=3)
    every = SampleSettings(max_new_tokens=6, beta=0)
    found = batch(Sampler(expert, amateur, every), data)
    assert [s.step for s in found[0].steps] == [0, 1, 2, 3, 4, 5]
    later = SampleSettings(max_new_tokens=6, beta=0, first_step=2)
    assert [s.step for s in batch(Sampler(expert, amateur, later), data)[0].steps] == [2, 3, 4, 5]


def test_a_row_of_the_answer_is_predicted_from_what_stands_before_it(expert, amateur):
    """KL of each token, again, from one forward a prefix."""
    row = batch(Sampler(expert, amateur, SHORT), read_questions("builtin:arithmetic", limit=3))[1].trajectory
    for t in (0, 5, 11):
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids[:t]]])
        with torch.no_grad():
            e, a = (torch.log_softmax(m.model(ids).logits[0, -1].double(), -1) for m in (expert, amateur))
        assert row.kl[t] == pytest.approx(float((e.exp() * (e - a)).sum()), rel=1e-3, abs=1e-6)


def test_drawn_answers_do_not_depend_on_the_batch(expert, amateur):
    data = read_questions("builtin:arithmetic", limit=5)
    drawn: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_new_tokens": 16}

    def answers(size: int) -> list[tuple[int, ...]]:
        sampler = Sampler(expert, amateur, SampleSettings(batch_size=size, **drawn))
        plan = Plan.of(sampler, data)
        return [
            s.trajectory.answer_ids for n in range(plan.num_batches) for s in sampler.sample(plan.batch(n))
        ]

    assert answers(1) == answers(2) == answers(5)
    assert answers(5) != [s.trajectory.answer_ids for s in batch(Sampler(expert, amateur, SHORT), data)]


@contextmanager
def nan_at(model: tr.Model, token: int) -> Iterator[None]:
    """Hidden states of every row that holds `token` become NaN."""

    def hook(_module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        ids = args[0] if args else kwargs["input"]
        return torch.where((ids == token).any(-1)[:, None, None], torch.nan, out)

    handle = model.core.get_input_embeddings().register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("side", ["expert", "amateur"])
def test_a_row_with_nan_is_refused_and_named_and_the_others_go_on(expert, amateur, side, tmp_path):
    data = questions("Tom has 3 apples.", "Tom has 3 zebras!", "Ann has 4 apples.")
    odd = expert.encode("!")[-1]
    clean = batch(Sampler(expert, amateur, SHORT), data)
    assert all(odd not in clean[i].trajectory.prompt_ids + clean[i].trajectory.answer_ids for i in (0, 2))
    with nan_at(expert if side == "expert" else amateur, odd):
        report = sample(expert, amateur, data, tmp_path, settings=SHORT)
    assert [name for name, _ in report.refused] == ["Tom has 3 zebras!"]
    assert "NaN" in report.refused[0][1]
    store = SampleStore(tmp_path)
    assert [t.index for t in store.trajectories()] == [0, 2]
    assert [t.answer_ids for t in store.trajectories()] == [clean[i].trajectory.answer_ids for i in (0, 2)]
    assert {s.prompt_id for s in store.steps()} <= {"Tom has 3 apples.", "Ann has 4 apples."}
    assert "Tom has 3 zebras!" in (tmp_path / "refused.jsonl").read_text()


def test_an_answer_without_text_gives_no_step_and_is_counted(amateur, expert, tmp_path):
    only_end = copy.deepcopy(expert.model)
    end = min(expert.eos_ids)

    def say_end(_module: Any, _args: Any, out: Any) -> Any:
        out.logits[..., end] = 60.0
        return out

    only_end.register_forward_hook(say_end)
    speaker = tr.load(only_end, expert.tokenizer)
    report = sample(speaker, amateur, questions("Tom has 3 apples."), tmp_path, settings=SHORT)
    assert (report.empty, report.kept, report.problems) == (1, 0, 1)
    assert next(SampleStore(tmp_path).trajectories()).answer_ids == (end,)


def test_prompts_beyond_the_context_are_refused_before_anything_runs_or_passed_over(
    expert, amateur, tmp_path
):
    data = questions("Tom has 3 apples.", "Tom has 3 apples. " * 400, "Ann has 4 apples.")
    with pytest.raises(ConfigError, match=r"^line 2: prompt of .* exceeds the context of builtin:expert"):
        sample(expert, amateur, data, tmp_path / "a", settings=SHORT)
    assert not (tmp_path / "a").exists()
    report = sample(expert, amateur, data, tmp_path / "b", settings=SHORT, skip_bad=True)
    assert (report.problems, len(report.bad)) == (2, 1)
    assert [t.index for t in SampleStore(tmp_path / "b").trajectories()] == [0, 1]
    with pytest.raises(ConfigError, match="no problem is left"):
        sample(
            expert,
            amateur,
            questions("Tom has 3 apples. " * 400),
            tmp_path / "c",
            settings=SHORT,
            skip_bad=True,
        )


def padded(model: tr.Model, rows: int) -> tr.Model:
    """A copy whose vocabulary has more rows, as heads are padded to a round number."""
    core = copy.deepcopy(model.model)
    core.resize_token_embeddings(rows, mean_resizing=False)
    return tr.load(core, model.tokenizer)


def test_unequal_vocabularies_are_compared_on_the_shared_ids_and_the_rest_is_reported(
    expert, amateur, tmp_path
):
    data = read_questions("builtin:arithmetic", limit=2)
    plain = batch(Sampler(expert, amateur, SHORT), data)
    wide = padded(amateur, amateur.vocab_size + 64)
    found = batch(Sampler(expert, wide, SHORT), data)
    assert [s.trajectory.answer_ids for s in found] == [s.trajectory.answer_ids for s in plain]
    assert 0 < found[0].trajectory.dropped_mass < 1
    assert plain[0].trajectory.dropped_mass == 0
    for a, b in zip(found, plain, strict=True):
        assert a.trajectory.kl == pytest.approx(b.trajectory.kl, rel=1e-2, abs=1e-4)


def test_an_answer_with_an_id_that_the_amateur_lacks_is_refused(expert, amateur):
    wide = padded(expert, expert.vocab_size + 8)
    lacking = expert.vocab_size + 3

    def say(_module: Any, _args: Any, out: Any) -> Any:
        out.logits[..., lacking] = 99.0
        return out

    wide.model.register_forward_hook(say)
    found = batch(Sampler(wide, amateur, SHORT), questions("Tom has 3 apples."))
    assert f"token id {lacking}, which the amateur lacks" in str(found[0].refused)


class Swapped:
    """A tokenizer in which two words have changed places."""

    def __init__(self, right: Any, a: int, b: int) -> None:
        self._right, self._swap = right, {a: b, b: a}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._right, name)

    def get_vocab(self) -> dict[str, int]:
        return {token: self._swap.get(i, i) for token, i in self._right.get_vocab().items()}


def test_tokenizers_that_disagree_are_refused_with_the_first_id(expert, amateur):
    other = tr.load(amateur.model, Swapped(amateur.tokenizer, 300, 200))
    with pytest.raises(ConfigError, match="disagree: id 200 is"):
        Sampler(expert, other, SHORT)


def test_without_a_template_the_question_is_the_prompt(expert, amateur):
    plain = SampleSettings(chat="off", max_new_tokens=4)
    row = batch(Sampler(expert, amateur, plain), questions("Tom has 3 apples."))[0].trajectory
    assert list(row.prompt_ids) == expert.encode("Tom has 3 apples.")
    bare = tr.load(expert.model, None)
    with pytest.raises(ConfigError, match="chat template"):
        Plan.of(Sampler(bare, amateur, SampleSettings(chat="on")), questions("x"))
    chatted = batch(Sampler(expert, amateur, SHORT), questions("x"))[0].trajectory
    assert "reason step by step" in expert.tokenizer.decode(list(chatted.prompt_ids))


def test_a_resume_with_other_settings_models_or_data_is_refused(expert, amateur, tmp_path):
    data = read_questions("builtin:arithmetic", limit=4)
    first = sample(expert, amateur, data, tmp_path, settings=SHORT)
    assert (first.problems, first.resumed) == (4, 0)
    before = (tmp_path / "steps.jsonl").read_bytes()
    again = sample(expert, amateur, data, tmp_path, settings=SHORT)
    assert (again.problems, again.resumed) == (4, 4)
    assert (tmp_path / "steps.jsonl").read_bytes() == before
    moved = copy.deepcopy(amateur.model)
    with torch.no_grad():
        weight = next(moved.parameters())
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))  # one bit of one weight
    others: dict[str, tuple[Any, ...]] = {
        "settings.beta": (expert, amateur, data, SampleSettings(max_new_tokens=12, batch_size=3, beta=0.5)),
        "amateur.digest": (expert, tr.load(moved, amateur.tokenizer), data, SHORT),
        "expert.digest": (amateur, amateur, data, SHORT),
        "data.sha256": (expert, amateur, read_questions("builtin:arithmetic", limit=4, seed=1), SHORT),
        "data.problems": (expert, amateur, read_questions("builtin:arithmetic", limit=5), SHORT),
    }
    for key, (e, a, d, settings) in others.items():
        with pytest.raises(SamplesError, match=key):
            sample(e, a, d, tmp_path, settings=settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"first_step": -1},
        {"chat": "maybe"},
        {"temperature": -1},
        {"beta": -1},
    ],
)
def test_settings_outside_their_range_cannot_be_built(settings):
    with pytest.raises(ConfigError):
        SampleSettings(**settings)


def test_an_unknown_engine_is_refused(expert, amateur, tmp_path):
    with pytest.raises(ConfigError, match="no engine called 'spark'"):
        sample(expert, amateur, questions("x"), Path(tmp_path), engine="spark")
