"""Training of scorers: terms that teach nothing, targets of other samples, runs that are killed, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.conftest import fingerprint
from tests.support.prune_tiny import SCHEDULE, samples, settings, tiny_llama
from twinrun.errors import CheckpointError, ConfigError, NonFiniteError, TrainingError, UnsupportedModelError
from twinrun.prune.checkpoints import TrainFolder
from twinrun.prune.marking import mark
from twinrun.prune.objective import Objective, Terms
from twinrun.prune.samples import Listed, Sample
from twinrun.prune.scorer import FACTS, WEIGHTS, Scorer
from twinrun.prune.settings import TrainSettings
from twinrun.prune.targets import Targets
from twinrun.prune.train import Training, train
from twinrun.prune.watch import Watch

WORKER = Path(__file__).parents[1] / "support" / "prune_worker.py"


@pytest.fixture(scope="module")
def model() -> tr.Model:
    return tiny_llama()


@pytest.fixture(scope="module")
def targets(model: tr.Model, tmp_path_factory: pytest.TempPathFactory) -> Targets:
    found = mark(model, samples(10), SCHEDULE.layers, tmp_path_factory.mktemp("targets"))
    assert found is not None
    return found


def training(model: tr.Model, targets: Targets | None, **given: object) -> Training:
    return Training(model, samples(10), Scorer.new(model, SCHEDULE.layers, 4), settings(**given), targets)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def outcome(folder: Path) -> tuple[bytes, bytes, bytes]:
    return tuple((folder / name).read_bytes() for name in (WEIGHTS, FACTS, "log.jsonl"))


def test_every_term_is_logged_and_every_sample_seen_once_an_epoch(
    model: tr.Model, targets: Targets, tmp_path: Path
) -> None:
    before = fingerprint(model.model)
    scorer = train(model, samples(10), tmp_path, settings(), targets=targets, hidden=4)
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == list(range(6))
    for epoch in (0, 1):
        seen = [i for row in rows if row["epoch"] == epoch for i in row["samples"]]
        assert sorted(seen) == list(range(10))
    terms = ["lm", "mse/1", "mse/3", "rank/1", "rank/3"]
    for row in rows:
        assert all(row[name] > 0 for name in terms)
        assert row["loss"] == pytest.approx(sum(row[name] for name in terms))
        assert 0 < row["kept/3"] < row["kept/1"] < 1
    rates = [row["learning_rate"] for row in rows]
    assert rates[0] == max(rates)
    assert 0 < rates[-1] < rates[1]
    assert fingerprint(model.model) == before
    assert all(p.requires_grad and p.grad is None for p in model.model.parameters())
    read = Scorer.load(tmp_path, model)
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), scorer.parameters(), strict=True))
    assert read.schedule == {1: 0.7, 3: 0.4}


@pytest.mark.parametrize("offline", [False, True])
def test_training_lowers_what_it_is_meant_to_lower(
    model: tr.Model, targets: Targets, tmp_path: Path, offline: bool
) -> None:
    how = {"epochs": 30, "learning_rate": 1e-2, "offline": offline, "batch_size": 5, "rows": 5}
    train(model, samples(10), tmp_path, settings(**how), targets=targets, hidden=4)
    rows = log(tmp_path)
    for name in ("mse/1", "rank/1", "mse/3", "rank/3"):
        assert sum(r[name] for r in rows[-4:]) < 0.96 * sum(r[name] for r in rows[:4]), name
    assert ("lm" in rows[0]) != offline


def spoiled(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[..., Terms]:
    real = Objective.terms

    def terms(self: Objective, own: Any, step: int) -> Terms:
        found = real(self, own, step)
        found.values = {**found.values, **change(found.values)}
        return found

    return terms


INERT = {
    "zero": (lambda v: {"mse/3": torch.zeros_like(v["mse/3"])}, "mse/3 is zero"),
    "zero but in the graph": (lambda v: {"mse/3": v["mse/3"] * 0}, "mse/3 is zero"),
    "constant": (lambda v: {"rank/1": torch.full_like(v["rank/1"], 0.7)}, "rank/1 is 0.7 in each"),
    "detached": (lambda v: {"rank/1": v["rank/1"].detach()}, "rank/1 sends no gradient"),
    "language model detached": (lambda v: {"lm": v["lm"].detach()}, "lm sends no gradient"),
}


@pytest.mark.parametrize("case", INERT)
def test_an_inert_term_ends_the_training_in_one_line(
    model: tr.Model, targets: Targets, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = INERT[case]
    monkeypatch.setattr(Objective, "terms", spoiled(change))
    with pytest.raises(TrainingError, match=message) as caught:
        training(model, targets).run(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert not (tmp_path / FACTS).exists()


def test_a_term_with_weight_zero_is_neither_computed_nor_missed(
    model: tr.Model, targets: Targets, tmp_path: Path
) -> None:
    run = training(model, targets, mse_weight=0.0, lm_weight=0.0)
    run.run(tmp_path)
    assert set(log(tmp_path)[0]) >= {"rank/1", "rank/3"}
    assert not set(log(tmp_path)[0]) & {"mse/1", "mse/3", "lm"}
    plain = training(model, None, mse_weight=0.0, rank_weight=0.0)
    assert plain.names() == ["lm"]
    plain.run(tmp_path / "plain")


def test_a_term_that_is_not_a_number_ends_the_training(
    model: tr.Model, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "terms", spoiled(lambda v: {"lm": v["lm"] * float("nan")}))
    with pytest.raises(NonFiniteError, match="loss term lm is nan at step 0"):
        training(model, targets).run(tmp_path)


@pytest.mark.parametrize("shift", [1, 3])
def test_targets_of_other_samples_are_found_whatever_handed_them_out(
    model: tr.Model, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    data = samples(10)

    def by_place(self: Objective, sample: Sample) -> Tensor:
        at = int(sample.name.rpartition("/")[2])
        other = data[(at + shift) % 10]
        found = targets.of(other)[:, : len(sample.prompt)]
        return torch.nn.functional.pad(found, (0, len(sample.prompt) - found.shape[1]))

    monkeypatch.setattr(Objective, "target_of", by_place)
    with pytest.raises(
        TrainingError, match=r"the target handed to sample s/\d is not its saliency at layer 1"
    ):
        training(model, targets).run(tmp_path)
    monkeypatch.undo()
    training(model, targets).run(tmp_path)  # the control


def test_stale_targets_are_refused(model: tr.Model, targets: Targets, tmp_path: Path) -> None:
    changed = Listed([Sample(s.name, s.prompt[::-1], s.answer) for s in (samples(10)[i] for i in range(10))])
    run = Training(model, changed, Scorer.new(model, SCHEDULE.layers, 4), settings(), targets)
    with pytest.raises(ConfigError, match="computed for other tokens"):
        run.run(tmp_path)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_cut_off_at_any_step_ends_with_the_same_bytes(
    model: tr.Model, targets: Targets, tmp_path: Path, stop: int
) -> None:
    training(model, targets).run(tmp_path / "whole")

    def cut(done: int, _total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(model, targets).run(tmp_path / "cut", cut)
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a row that was being written
    training(model, targets).run(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    again = training(model, targets).run(tmp_path / "cut")  # a finished run is only read
    assert again.schedule == {1: 0.7, 3: 0.4}
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_another_request_or_a_damaged_checkpoint_is_refused(
    model: tr.Model, targets: Targets, tmp_path: Path
) -> None:
    training(model, targets).run(tmp_path)
    with pytest.raises(ConfigError, match="holds a training with settings"):
        training(model, targets, noise=0.9).run(tmp_path)
    newest = TrainFolder(tmp_path, json.loads((tmp_path / "train.json").read_text())).checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        training(model, targets).run(tmp_path)


def test_wrong_requests_are_refused(model: tr.Model, targets: Targets) -> None:
    with pytest.raises(ConfigError, match="need targets"):
        training(model, None)
    with pytest.raises(ConfigError, match="the scorer know 2"):
        Training(model, samples(10), Scorer.new(model, [2], 4), settings(), targets)
    with pytest.raises(ConfigError, match="made for LlamaForCausalLM with fingerprint"):
        Training(tiny_llama(seed=2), samples(10), Scorer.new(model, SCHEDULE.layers, 4), settings(), targets)
    packed = tr.int8_weight_only(tr.load(tiny_llama(torch.bfloat16).model))
    with pytest.raises(UnsupportedModelError, match="quantised weights"):
        training(packed, targets)
    for wrong, message in (
        ({"epochs": 0}, "epochs must be at least 1"), ({"warmup": 1.5}, "share of the steps"),
        ({"sign": "both"}, "unknown sign"), ({"learning_rate": 0.0}, "must be above 0"),
        ({"noise": -1.0}, "0 or larger"),
        ({"lm_weight": 0.0, "mse_weight": 0.0, "rank_weight": 0.0}, "every loss term"),
        ({"offline": True, "mse_weight": 0.0, "rank_weight": 0.0}, "every loss term"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            TrainSettings(schedule=SCHEDULE, **wrong)


def test_the_watch_waits_for_as_many_steps_as_it_was_told() -> None:
    watch = Watch(3)
    for step in range(2):
        watch.see(step, {"mse": 0.0}, {"mse": 0.0})
    assert watch.is_open
    with pytest.raises(TrainingError, match="zero in the first 3 steps"):
        watch.see(2, {"mse": 0.0}, {"mse": 0.0})
    fine = Watch(2)
    fine.see(0, {"mse": 0.0}, {"mse": 0.1})
    fine.see(1, {"mse": 0.3}, {"mse": 0.1})
    fine.see(2, {"mse": 0.0}, {})
    Watch(0).see(0, {"mse": 0.0}, {})


def worker(folder: Path, *argv: str, **env: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    path = {"PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), *argv], env={**os.environ, **path, **env}
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_killed_by_the_system_end_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL once while marking and once while training, at whatever instant that is."""
    assert worker(tmp_path / "whole").wait() == 0
    kills = 0
    for wait in (0.05, 0.3):
        job = worker(tmp_path / "cut", "--slowly")
        begun = tmp_path / "cut" / ("targets" if kills == 0 else "train")
        while job.poll() is None and not list(begun.glob("*.parquet" if kills == 0 else "checkpoint-*")):
            time.sleep(0.02)
        time.sleep(wait)
        job.send_signal(signal.SIGKILL)
        kills += job.wait() == -signal.SIGKILL
    assert kills == 2
    assert worker(tmp_path / "cut").wait() == 0
    assert outcome(tmp_path / "cut" / "train") == outcome(tmp_path / "whole" / "train")
    for path in (tmp_path / "whole" / "targets").iterdir():
        assert (tmp_path / "cut" / "targets" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_the_same_scorer_as_one(tmp_path: Path) -> None:
    """`torchrun`'s environment, gloo on the CPU: equal up to the order of sums."""
    assert worker(tmp_path / "one").wait() == 0
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    both = [worker(tmp_path / "two", RANK=str(r), LOCAL_RANK=str(r), **group) for r in range(2)]
    assert [job.wait() for job in both] == [0, 0]
    one, two = (Scorer.load(tmp_path / n / "train").state_dict() for n in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-4, atol=1e-5)
    rows = [log(tmp_path / n / "train") for n in ("one", "two")]
    assert [r["samples"] for r in rows[0]] == [r["samples"] for r in rows[1]]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
