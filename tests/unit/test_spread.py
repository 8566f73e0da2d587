"""One model over several devices: refusals, a device map, two processes with half of every layer each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import twinrun as tr
from tests.support.tiny import tiny_folder
from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.spread import Spread

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny", layers=3))


def test_a_device_map_is_handed_on_and_changes_no_number(folder: str) -> None:
    whole, mapped = tr.load(folder), tr.load(folder, device_map={"": "cpu"})
    assert mapped.choices["device"] == "spread: device_map={'': 'cpu'}"
    v = tr.verify(tr.KVCache(whole), tr.KVCache(mapped), [list(range(30, 50))])
    assert v.verdict == "identical"


def test_requests_that_cannot_be_are_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"tp_plan": "auto"}, "this is one process; start with `torchrun"),
        ({"tp_plan": "auto", "device_map": "auto"}, "give one of the two"),
        ({"device_map": "auto", "device": "cpu"}, "places the model by itself"),
    ):
        with pytest.raises(ConfigError, match=message):
            tr.load(folder, **options)
    with pytest.raises(ConfigError, match="does not apply to a model in memory"):
        tr.load(tr.load(folder).model, device_map="auto")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="num_key_value_heads=2, which 4 processes cannot share evenly"):
        tr.load(folder, tp_plan="auto")
    with pytest.raises(UnsupportedModelError, match="read by twinrun's own code"):
        Spread(tp_plan="auto", processes=2).check({"model_type": "llada"}, "m")
    assert not Spread.of(None, None, "cpu")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launched(
    out: Path, *command: str, launcher: tuple[str, ...] = ("torch.distributed.run", "--standalone")
) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *command], env=env, cwd=out, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_with_half_of_every_layer_are_the_same_model(folder: str, tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "support" / "split_run.py")
    launched(tmp_path, "--nproc_per_node", "2", script, folder, str(tmp_path))
    for rank in (0, 1):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert set(found["verdicts"]) <= {"identical", "equivalent"}, found["reason"]
        assert found["wrong"] == "different"  # the control: one layer one percent off
        assert found["share"] == 0.5
        assert found["same_text"]
        assert found["cache"] == [30, 30, 30]
        assert found["device"] == "split over 2 processes: tp_plan='auto'"


@pytest.mark.slow
def test_processes_share_an_evaluation_and_give_the_result_of_one(folder: str, tmp_path: Path) -> None:
    asked = [
        "-m", "twinrun", "prune", "eval", folder, "--task", "niah_single", "--lengths", "480", "--items", "3",
        "--answer-tokens", "3", "--digits", "3", "--schedule", "1:0.5", "--selector", "random", "--batch", "2",
    ]  # fmt: skip
    many = (
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    )
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--main_process_port", free_port(), *many)
    launched(tmp_path, *asked, "--out", "two", launcher=launcher)
    done = subprocess.run(
        [sys.executable, *asked, "--out", "one"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0
    one, two = (json.loads((tmp_path / name / "quality.json").read_text()) for name in ("one", "two"))
    for record in (one, two):
        for row in [*record["cells"], *record["overall"]]:
            row.pop("seconds")
    assert all(one[key] == two[key] for key in ("cells", "overall", "pairs"))
    sizes = [len((tmp_path / "two" / f"answers.{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert min(sizes) > 0
    assert sum(sizes) == 2 * 2 * 3
