"""Rows, files and the folder of samples: equal after every way through, whole after every way to be stopped."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from twinrun.contrast.files import read_steps, read_trajectories, write_jsonl, write_parquet
from twinrun.contrast.samples import StepSample, Trajectory, short_float
from twinrun.contrast.store import HEADER, Sampled, SampleStore
from twinrun.errors import ConfigError, SamplesError
from twinrun.records import write

IDENTITY = {
    "settings": {"beta": 0.4},
    "expert": {"digest": "e"},
    "amateur": {"digest": "a"},
    "data": {"sha256": "d"},
}


def sampled(i: int, *, refused: str | None = None) -> Sampled:
    rng = random.Random(i)
    name = f"problem {i} – “ü” \u2028"
    raw = np.array([rng.random() for _ in range(rng.randint(1, 4))], np.float32)
    weights = tuple(sorted((raw / raw.sum()).tolist(), reverse=True))
    step = StepSample(
        prompt_id=name,
        step=rng.randint(0, 9),
        token_ids=tuple(rng.sample(range(50_000), len(weights))),
        weights=weights,
        kl=float(np.float32(rng.random() * 9)),
        tokens=tuple(f'"{k}\n' for k in range(len(weights))),
    )
    ids = tuple(rng.randrange(50_000) for _ in range(5))
    row = Trajectory(
        prompt_id=name,
        question=f"How?\n{i}",
        prompt_ids=ids,
        answer_ids=ids[:3],
        answer="7\ufffd",
        finished=i % 2 == 0,
        index=i,
        kl=tuple(np.array([0.1, 1e-9, 3.3], np.float32).tolist()),
        dropped_mass=float(np.float32(0.1)),
    )
    return Sampled(trajectory=row, steps=() if refused else (step,), refused=refused)


BATCHES = [[sampled(i, refused="NaN" if i == 4 else None) for i in range(3 * n, 3 * n + 3)] for n in range(4)]


def fill(folder: Path, numbers: Any = range(4)) -> SampleStore:
    store = SampleStore.create(folder, IDENTITY, parts=4)
    with store.writing():
        for n in numbers:
            if n not in store.done():
                store.append(n, BATCHES[n])
        store.export_jsonl()
        store.export_parquet()
    return store


def exported(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".jsonl", ".parquet")}


def test_what_was_put_in_comes_out_of_the_folder_and_of_every_file(tmp_path):
    store = fill(tmp_path)
    steps = [s for batch in BATCHES for found in batch for s in found.steps]
    rows = [found.trajectory for batch in BATCHES for found in batch if found.refused is None]
    assert list(store.steps()) == steps
    assert list(store.trajectories()) == rows
    assert [(t.index, why) for t, why in store.refused()] == [(4, "NaN")]
    for kind in ("jsonl", "parquet"):
        assert list(read_steps(tmp_path / f"steps.{kind}")) == steps
        assert list(read_trajectories(tmp_path / f"trajectories.{kind}")) == rows
    assert store.settings == {"beta": 0.4}
    assert store.complete
    assert json.loads((tmp_path / "refused.jsonl").read_text()) == {
        "prompt_id": BATCHES[1][1].trajectory.prompt_id,
        "index": 4,
        "reason": "NaN",
    }


def test_parquet_has_one_row_a_step_and_one_a_trajectory(tmp_path):
    fill(tmp_path)
    steps, rows = (pq.read_table(tmp_path / f"{kind}.parquet") for kind in ("steps", "trajectories"))
    assert (steps.num_rows, rows.num_rows) == (11, 11)
    assert {"prompt_id", "step", "token_ids", "weights", "kl"} <= set(steps.column_names)
    assert str(steps.schema.field("weights").type) == "list<element: float>"


def test_floats_are_short_and_come_back_bit_for_bit():
    values = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    for value in [*values, np.float32(1e-45), np.float32(3e38)]:
        again = np.float32(json.loads(json.dumps(short_float(float(value)))))
        assert again == value
    assert json.dumps(short_float(float(np.float32(0.1)))) == "0.1"


def test_batches_in_any_order_give_the_same_files(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b", [2, 0, 3, 1])
    assert exported(tmp_path / "a") == exported(tmp_path / "b")
    assert fill(tmp_path / "c", [2, 0]).done() == {0, 2}


class Killed(BaseException):
    """The process ends here."""


class FullAfter:
    """A file on a disk that is full once `at` writes were made; the one that fails is half written."""

    def __init__(self, file: Any, tick: Callable[[], bool], error: BaseException) -> None:
        self._file, self._tick, self._error = file, tick, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullAfter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        if self._tick():
            self._file.write(bytes(data)[: len(data) // 2])
            raise self._error
        return int(self._file.write(data))


def stops(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Callable[[], int]:
    """Let the `at`-th call into the file system raise: write, fsync or rename."""
    count = 0

    def tick() -> bool:
        nonlocal count
        count += 1
        return count == at

    def counted(real: Any) -> Any:
        def call(*args: Any) -> Any:
            if tick():
                raise error
            return real(*args)

        return call

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    opened = lambda path, mode: FullAfter(open(path, mode), tick, error)  # noqa: E731, SIM115  closed by its user
    monkeypatch.setattr(write, "open", opened, raising=False)
    return lambda: count


def test_stopped_at_every_instant_and_resumed_it_is_as_if_it_had_not_been(tmp_path, monkeypatch):
    fill(tmp_path / "whole")
    with monkeypatch.context() as patch:
        calls = stops(patch, 0, Killed())
        fill(tmp_path / "counted")
    instants = range(1, calls() + 1, 7)  # 7 meets writes, fsyncs and renames of every file in turn
    assert len(instants) > 15
    for at in instants:
        folder = tmp_path / f"run{at}"
        with monkeypatch.context() as patch:
            stops(patch, at, Killed())
            with pytest.raises(Killed):
                fill(folder)
        for n in SampleStore(folder).done() if (folder / HEADER).exists() else ():
            assert n in range(4)
        fill(folder)
        assert exported(folder) == exported(tmp_path / "whole")
        assert not list(folder.rglob("*.part"))


def test_a_full_disk_is_one_line_and_nothing_is_corrupt(tmp_path, monkeypatch):
    fill(tmp_path / "whole")
    for at in range(1, 100, 9):
        folder = tmp_path / f"full{at}"
        with monkeypatch.context() as patch:
            stops(patch, at, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(ConfigError, match="No space left on device; free some space") as caught:
                fill(folder)
            assert "\n" not in str(caught.value)
        fill(folder)
        assert exported(folder) == exported(tmp_path / "whole")


def test_the_two_tests_above_would_see_a_writer_that_is_not_atomic(tmp_path, monkeypatch):
    """The control: batches written in place, as `open(path, "w")` does, leave a broken one behind."""

    def in_place(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise Killed

    store = SampleStore.create(tmp_path, IDENTITY, parts=4)
    store.append(0, BATCHES[0])
    whole = next((tmp_path / "parts").iterdir()).read_bytes()
    with pytest.raises(Killed):
        in_place(tmp_path / "parts" / "part-0000001.parquet", whole)
    with pytest.raises(
        SamplesError, match=r"part-0000001.parquet was truncated or changed .*; remove it and run"
    ):
        list(store.steps())


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    return fill(tmp_path, [0]).folder


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("settings.beta", {"settings": {"beta": 0.5}}),
        ("expert.digest", {"expert": {"digest": "x"}}),
        ("amateur.digest", {"amateur": {"digest": "x"}}),
        ("data.sha256", {"data": {"sha256": "x"}}),
    ],
)
def test_another_run_is_refused_in_one_line(begun, key, change):
    with pytest.raises(
        SamplesError, match=f"sampled with {key} = .*this run has .*give another --out"
    ) as caught:
        SampleStore.create(begun, {**IDENTITY, **change}, parts=4)
    assert "\n" not in str(caught.value)
    with pytest.raises(SamplesError, match="parts = 4, this run has 5"):
        SampleStore.create(begun, IDENTITY, parts=5)
    assert SampleStore.create(begun, IDENTITY, parts=4).done() == {0}


def test_a_batch_is_committed_once_and_must_be_of_the_run(begun):
    store = SampleStore(begun)
    with pytest.raises(SamplesError, match="a batch is committed once"):
        store.append(0, BATCHES[0])
    with pytest.raises(SamplesError, match="batch 4 of a run of 4"):
        store.append(4, BATCHES[0])


def test_two_runs_on_one_folder_are_refused(begun):
    first, second = SampleStore(begun), SampleStore(begun)
    with first.writing(), pytest.raises(SamplesError, match="another run is writing"), second.writing():
        pass
    with SampleStore(begun).writing():  # the first has let go
        pass


def test_folders_that_hold_no_samples_are_refused(tmp_path):
    with pytest.raises(SamplesError, match=r"holds no samples.json; give a folder"):
        SampleStore(tmp_path)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(SamplesError, match="not empty"):
        SampleStore.create(tmp_path, IDENTITY, parts=1)
    (tmp_path / HEADER).write_text('{"schema": ')
    with pytest.raises(SamplesError, match="truncated or changed"):
        SampleStore(tmp_path)
    (tmp_path / HEADER).write_text('{"schema": "twinrun.samples/9"}')
    with pytest.raises(SamplesError, match=r"twinrun\.samples/9"):
        SampleStore(tmp_path)


STEP = BATCHES[0][0].steps[0].to_json()
ROW = BATCHES[0][0].trajectory.to_json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": [0.5, 0.6], "token_ids": [1, 2], "tokens": []}, "sum to 1"),
        ({"weights": []}, "weights"),
        ({"token_ids": [], "weights": [], "tokens": []}, "at least one"),
        ({"step": -1}, "count from 0"),
        ({"kl": None}, "finite"),
        ({"kl": "x"}, "not a row"),
        ({"kl": float("inf")}, "finite"),
        ({"token_ids": [1.5]}, "no integer"),
        ({"prompt_id": 7}, "not text"),
        ({"weights": [float("nan")], "token_ids": [1], "tokens": []}, "sum to 1"),
        ({"tokens": ["a"] * 9}, "9 tokens with"),
    ],
)
def test_rows_that_are_no_samples_are_named(tmp_path, change, words):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (STEP, {**STEP, **change})))
    with pytest.raises(SamplesError, match=rf"steps.jsonl line 2: .*{words}"):
        list(read_steps(path))


def test_lines_and_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "trajectories.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n{")
    with pytest.raises(SamplesError, match=r"trajectories.jsonl line 3 is not valid JSON"):
        list(read_trajectories(path))
    path.write_text(json.dumps({k: v for k, v in ROW.items() if k != "answer_ids"}) + "\n")
    with pytest.raises(SamplesError, match="no column 'answer_ids'"):
        list(read_trajectories(path))
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(SamplesError, match=f"cannot read .*{name}"):
            list(read_steps(tmp_path / name))
    with pytest.raises(SamplesError, match="no prompt ids"):
        Trajectory.of({**ROW, "prompt_ids": []})
    with pytest.raises(SamplesError, match="values of KL"):
        Trajectory.of({**ROW, "kl": [1.0]})


def test_a_file_is_whole_or_absent(tmp_path):
    def rows() -> Iterator[StepSample]:
        yield StepSample.of(STEP)
        raise Killed

    for save in (write_jsonl, lambda path, found: write_parquet(path, found, "steps")):
        path = tmp_path / "steps.x"
        with pytest.raises(Killed):
            save(path, rows())
        assert list(tmp_path.iterdir()) == []
