"""The public project's JSONL: written and read, and what its text form loses is counted."""

from __future__ import annotations

import json

import pytest

import twinrun as tr
from twinrun.contrast.problems import read_questions
from twinrun.contrast.public import FIELDS, read_public, read_public_jsonl, write_public_jsonl
from twinrun.contrast.sample import sample
from twinrun.contrast.samples import StepSample
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import SampleStore
from twinrun.errors import ConfigError, SamplesError

LINE = {
    "prompt_id": "How many?", "step": 1, "prefix": "7", "tokens": ["a", "b"], "token_ids": [3, 9],
    "weights": [0.25, 0.75], "kl_divergence": 0.5,
}  # fmt: skip


def store_of(folder, expert, amateur, **settings) -> SampleStore:
    chosen = SampleSettings(max_new_tokens=24, beta=0.05, first_step=1, **settings)
    sample(expert, amateur, read_questions("builtin:arithmetic", limit=3), folder, settings=chosen)
    return SampleStore(folder)


def test_what_was_written_is_read_again_and_stands_where_it_did(expert, amateur, tmp_path):
    store = store_of(tmp_path / "s", expert, amateur)
    steps, rows = list(store.steps()), {t.prompt_id: t for t in store.trajectories()}
    path = write_public_jsonl(tmp_path / "public.jsonl", steps, rows.values(), expert)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(tuple(line) == FIELDS for line in lines)
    assert all(line["token_ids"] == sorted(line["token_ids"]) for line in lines)
    assert len(steps) > 4
    again = read_public_jsonl(path)
    assert [p.sample.weights for p in again] == [s.weights for s in steps]
    assert [p.sample.kl for p in again] == [s.kl for s in steps]
    found = read_public(path, expert)
    assert found.misaligned == 0  # greedy answers are tokenised as they were written
    for row in found.trajectories:
        ours = next(t for t in rows.values() if t.question == row.prompt_id)
        assert row.prompt_ids == ours.prompt_ids
        assert row.answer_ids == ours.answer_ids[: len(row.answer_ids)]
    assert [(s.step, s.token_ids) for s in found.steps] == [(s.step, s.token_ids) for s in steps]


def test_steps_whose_prefix_is_tokenised_otherwise_are_left_out_and_counted(expert, amateur, tmp_path):
    store = store_of(tmp_path / "s", expert, amateur, temperature=3.0)
    path = write_public_jsonl(tmp_path / "public.jsonl", store.steps(), store.trajectories(), expert)
    found = read_public(path, expert)
    assert found.misaligned > 0
    assert found.misaligned + len(found.steps) == len(list(store.steps()))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"prefix": 7}, "'prefix' is int"), ({"weights": [1.0]}, "fit together"), ({"tokens": ["a"] * 3}, "one of each"),
     ({"weights": [0.5, 0.6]}, "sum to 1"), ({"kl_divergence": "x"}, "not a row")],
)  # fmt: skip
def test_lines_that_are_no_steps_are_named(tmp_path, change, words):
    path = tmp_path / "public.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, **change}) + "\n")
    with pytest.raises(SamplesError, match=rf"public.jsonl line 2: .*{words}"):
        read_public_jsonl(path)


def test_other_files_are_refused(tmp_path, expert):
    path = tmp_path / "public.jsonl"
    path.write_text(json.dumps({k: v for k, v in LINE.items() if k != "prefix"}))
    with pytest.raises(SamplesError, match="line 1 has no field 'prefix'"):
        read_public_jsonl(path)
    step = StepSample(prompt_id="x", step=0, token_ids=(1,), weights=(1.0,), kl=1.0)
    with pytest.raises(SamplesError, match="no trajectory"):
        write_public_jsonl(path, [step], [], expert)
    with pytest.raises(ConfigError, match="no tokenizer"):
        write_public_jsonl(path, [], [], tr.load(expert.model, None))
