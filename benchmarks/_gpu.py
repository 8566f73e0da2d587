"""What the scripts for a CUDA device share: the refusal without one, and what device the numbers were taken on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _record import run

from twinrun.errors import ConfigError, MissingBackendError


def run_on_gpu(
    name: str,
    about: str,
    settings: type[Any],
    measure: Callable[[Any], dict[str, Any]],
    doc: str | None,
    argv: Sequence[str] | None,
) -> int:
    """Run a script whose settings name a device, and put that device into its record."""
    return run(
        name, about, settings, lambda config: {**hardware(config.device), **measure(config)}, doc, argv
    )


def hardware(device: str) -> dict[str, Any]:
    """Return what a reader needs to place the numbers; raise where there is no CUDA device."""
    if torch.device(device).type != "cuda":
        raise ConfigError(
            f"device {device!r} is no CUDA device; single_pass.py and streamed_kl.py measure a processor"
        )
    if not torch.cuda.is_available():
        raise MissingBackendError("this machine has no CUDA device; run this script where there is one")
    about = torch.cuda.get_device_properties(device)
    return {"gpu": about.name, "gpu_memory_bytes": about.total_memory, **_smi()}


def _smi() -> dict[str, Any]:
    """Driver and power limit of the first device, as nvidia-smi says; None where it cannot be asked."""
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        driver, watts = done.stdout.splitlines()[0].split(", ")
        return {"driver": driver, "gpu_power_limit_watts": float(watts)}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {"driver": None, "gpu_power_limit_watts": None}
