"""Sampling on a real local Ray cluster: a worker killed in the middle loses nothing and repeats nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import twinrun as tr
from twinrun.contrast.problems import read_questions
from twinrun.contrast.sample import sample
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import SampleStore
from twinrun.errors import MissingBackendError

SETTINGS = SampleSettings(batch_size=2, max_new_tokens=24)
FILES = ("steps.jsonl", "trajectories.jsonl")


@pytest.fixture
def ray() -> Iterator[Any]:
    """A cluster of two slots on this machine, ended with the test."""
    os.environ.setdefault(
        "RAY_raylet_start_wait_time_s", "300"
    )  # of a busy machine; read when ray is imported
    found = pytest.importorskip("ray", reason="ray is not installed")
    found.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield found
    found.shutdown()


def replicas() -> list[psutil.Process]:
    """Processes of this cluster that hold the models."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.is_running() and "MapWorker" in "".join(p.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_killed_in_the_middle_loses_nothing_and_repeats_nothing(ray: Any, tmp_path: Path) -> None:
    assert ray.is_initialized()
    pair = tr.load("builtin:expert"), tr.load("builtin:amateur")
    data = read_questions("builtin:arithmetic", limit=24)
    sample(*pair, data, tmp_path / "here", settings=SETTINGS)
    killed: list[int] = []

    def kill_one(_done: int, _total: int) -> None:
        if not killed:
            victims = replicas()
            assert victims, "the test must see the workers to kill one"
            killed.append(victims[0].pid)
            os.kill(victims[0].pid, signal.SIGKILL)

    found = sample(*pair, data, tmp_path / "ray", settings=SETTINGS, engine="ray", on_progress=kill_one)
    assert killed
    assert found.problems == 24
    assert SampleStore(tmp_path / "ray").complete
    for name in FILES:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_begun_here_is_continued_on_ray(ray: Any, tmp_path: Path) -> None:
    pair = tr.load("builtin:expert"), tr.load("builtin:amateur")
    data = read_questions("builtin:arithmetic", limit=8)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(*pair, data, tmp_path / "a", settings=SETTINGS, on_progress=stop)
    assert SampleStore(tmp_path / "a").done() == {0}
    found = sample(*pair, data, tmp_path / "a", settings=SETTINGS, engine="ray")
    sample(*pair, data, tmp_path / "b", settings=SETTINGS)
    assert (found.problems, found.resumed) == (8, 2)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_without_ray_the_engine_says_what_to_install(tmp_path, expert, amateur, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    data = read_questions("builtin:arithmetic", limit=1)
    with pytest.raises(MissingBackendError, match=r"twinrun\[ray\]"):
        sample(expert, amateur, data, tmp_path, settings=SETTINGS, engine="ray")
