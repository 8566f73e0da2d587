"""The folder of a training: what was asked for, the checkpoints that a kill may have cut, and what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twinrun.errors import ConfigError
from twinrun.records.env import environment
from twinrun.records.write import write_json

REQUEST, RECORD, LOG = "request.json", "training.json", "log.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training left.

    Attributes:
        folder: holds the adapter (peft's files), request, log and this record.
        steps: optimizer steps taken.
        best_step: the one whose adapter was kept; None without validation.
        validation_loss: of that adapter, nats a tuned token; None without validation.
        lessons: answers trained on; `validation_lessons` were kept apart.
        cost: tokens of one round over the training lessons.
        verdict: of the training check; None where it was switched off.
        together: whether a batch was one forward.
    """

    folder: str
    steps: int
    best_step: int | None
    validation_loss: float | None
    lessons: int
    validation_lessons: int
    cost: dict[str, Any]
    verdict: str | None
    together: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": "twinrun.training/1",
            **asdict(self),
            "environment": environment(),
            "peft": version("peft"),
        }


def open_folder(folder: Path, request: Mapping[str, Any]) -> Path:
    """Begin a folder, or find it begun with the same request.

    Raises:
        ConfigError: the folder holds another training, or something else.
    """
    wanted = json.loads(json.dumps(request))
    place = folder / REQUEST
    if not place.exists():
        if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no {REQUEST}; give another --out")
        write_json(place, wanted)
        return folder
    there = json.loads(place.read_text("utf-8"))
    for key in sorted({*there, *wanted} - {"base_name"}):
        if there.get(key) != wanted.get(key):
            old, new = _part(there.get(key), wanted.get(key))
            raise ConfigError(f"{folder} holds a training with {key} {old}, not {new}; give another --out")
    return folder


def _part(old: Any, new: Any) -> tuple[str, str]:
    """The entries in which two settings differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return f"{old!r:.80}", f"{new!r:.80}"
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return f"{ {k: old.get(k) for k in keys} }", f"{ {k: new.get(k) for k in keys} }"


def finished(folder: Path) -> Trained | None:
    """What a training that came to its end here left; None where none did."""
    path = folder / RECORD
    if not path.exists():
        return None
    found = json.loads(path.read_text("utf-8"))
    return Trained(**{key: found[key] for key in Trained.__slots__} | {"folder": str(folder)})


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those behind it, cut off by a kill, are removed.

    The Trainer writes its state last, so a checkpoint with a readable state is whole.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text("utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        return path
    return None
