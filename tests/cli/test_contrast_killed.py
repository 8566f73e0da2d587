"""A training that is killed at random instants and begun again ends with the adapter of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

import twinrun as tr
from tests.support.lessons import store
from tests.support.tiny import tiny_folder

STEPS = 40


def command(base: Path, samples: Path, out: Path) -> list[str]:
    words = "--precision float32 --batch-size 2 --every 3 --validation 0.3 --lr 0.01 --no-check --set logging_steps=1"
    head = [
        sys.executable,
        "-m",
        "twinrun",
        "contrast",
        "train",
        "--expert",
        str(base),
        "--samples",
        str(samples),
    ]
    return [*head, "--out", str(out), "--steps", str(STEPS), *words.split()]


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def killed(argv: list[str], out: Path, rng: Random) -> bool:
    """Start, wait for a checkpoint more than there was, then kill at a random instant. False if it ended first."""
    before = set(out.glob("checkpoints/checkpoint-*"))
    process = start(argv)
    while process.poll() is None and not set(out.glob("checkpoints/checkpoint-*")) - before:
        time.sleep(0.01)
    time.sleep(rng.random() * 0.4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path) -> None:
    base = tiny_folder(tmp_path / "base")
    store(tmp_path / "samples", tr.load(str(base)))
    whole, out = tmp_path / "whole", tmp_path / "out"
    process = start(command(base, tmp_path / "samples", whole))
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()[-2000:]
    argv, rng = command(base, tmp_path / "samples", out), Random(int(os.environ.get("TWINRUN_SEED", "4")))
    kills = sum(killed(argv, out, rng) for _ in range(3))
    assert kills >= 2
    process = start(argv)
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()[-2000:]
    for name in ("adapter_model.safetensors", "log.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
