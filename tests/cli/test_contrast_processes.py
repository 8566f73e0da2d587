"""Two processes train what one does: a step is the mean over its tuned tokens, wherever they were."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import twinrun as tr
from tests.support.lessons import store
from tests.support.tiny import tiny_folder

SHARED = "--steps 3 --every 1 --precision float32 --validation 0.3 --lr 0.01 --no-check --dropout 0 --accumulation 1"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def trained(folder: Path, name: str, processes: int, batch_size: int) -> Tensor:
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_port",
        str(free_port()),
    ]
    given = [
        "--expert",
        str(folder / "base"),
        "--samples",
        str(folder / "samples"),
        "--out",
        str(folder / name),
    ]
    argv = [
        *(launcher if processes > 1 else []),
        "-m",
        "twinrun",
        "contrast",
        "train",
        *given,
        *SHARED.split(),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *argv, "--batch-size", str(batch_size)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(folder / name / "adapter_model.safetensors")
    return torch.cat([t.reshape(-1) for _, t in sorted(found.items())])


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path) -> None:
    base = tiny_folder(tmp_path / "base")
    store(tmp_path / "samples", tr.load(str(base)))
    one = trained(tmp_path, "one", 1, 4)
    two = trained(tmp_path, "two", 2, 2)
    half = trained(tmp_path, "half", 1, 2)  # the control: half of the answers a step is another training
    assert (two - one).norm() < 1e-3 * one.norm()
    assert (half - one).norm() > 1e-1 * one.norm()
