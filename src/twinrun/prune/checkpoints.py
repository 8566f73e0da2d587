"""A training on disk: the request, a log row a step, checkpoints that are whole or absent, and exact resumption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from twinrun.errors import CheckpointError, ConfigError
from twinrun.prune.scorer import Scorer
from twinrun.records.write import write_bytes, write_json, write_text

REQUEST, LOG = "train.json", "log.jsonl"
KEPT = 2
"""Checkpoints that stay."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainFolder:
    """The files of one training.

    Args:
        folder: made if missing.
        request: settings, data and model; another one is refused.
        writes: whether this process writes (the first one does).

    Raises:
        ConfigError: the folder holds a training of another request; names the key.
    """

    def __init__(self, folder: str | Path, request: Mapping[str, Any], *, writes: bool = True) -> None:
        """Open or begin."""
        self.folder, self.writes = Path(folder), writes
        wanted = json.loads(json.dumps(request))
        place = self.folder / REQUEST
        if place.exists():
            there = json.loads(place.read_text("utf-8"))
            for key in sorted({*there, *wanted}):
                if there.get(key) != wanted.get(key):
                    raise ConfigError(
                        f"{folder} holds a training with {key}={there.get(key)!r:.200}, not {wanted.get(key)!r:.200}; "
                        "choose another --out"
                    )
        elif writes:
            write_json(place, wanted)

    def checkpoints(self) -> list[Path]:
        """Checkpoints, the newest last."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def save(self, step: int, scorer: Scorer, optimizer: torch.optim.Optimizer) -> None:
        """Write weights and moments after `step` steps; older checkpoints go, but for the newest `KEPT`."""
        if not self.writes:
            return
        state = {f"scorer.{name}": t.detach().cpu().contiguous() for name, t in scorer.state_dict().items()}
        for name, weight in scorer.named_parameters():
            for moment in MOMENTS:
                held: Tensor = optimizer.state[weight][moment]
                state[f"{moment}.{name}"] = held.detach().cpu().contiguous()
        data = save_tensors(state, {"step": str(step)})
        write_bytes(self.folder / f"checkpoint-{step:06d}.safetensors", data)
        for old in self.checkpoints()[:-KEPT]:
            old.unlink(missing_ok=True)

    def restore(self, scorer: Scorer, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest checkpoint; returns the steps it has seen, 0 without one.

        Raises:
            CheckpointError: it is damaged.
        """
        found = self.checkpoints()
        if not found:
            return 0
        try:
            with safe_open(found[-1], framework="pt") as file:
                step = int(file.metadata()["step"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            scorer.load_state_dict({n: state[f"scorer.{n}"] for n in scorer.state_dict()})
            for name, weight in scorer.named_parameters():
                moments = {m: state[f"{m}.{name}"].to(weight.device) for m in MOMENTS}
                optimizer.state[weight] = {**moments, "step": moments["step"].cpu()}
        except (SafetensorError, KeyError, TypeError, RuntimeError, OSError) as error:
            raise CheckpointError(
                f"{found[-1]} is damaged ({error}); delete it, the one before is taken"
            ) from error
        return step

    def rewind_log(self, step: int) -> None:
        """Drop log rows of steps beyond `step`, which will be made again."""
        path = self.folder / LOG
        if self.writes and path.exists():
            rows = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
            write_text(path, "".join(row for row in rows if json.loads(row)["step"] < step))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        if self.writes:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
