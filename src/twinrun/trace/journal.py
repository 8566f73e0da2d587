"""Write a run to disk while it goes on: a journal of single steps, packed into Parquet and safetensors now and then.

A step is in the journal as soon as its line is whole, so a killed run is readable up to its last full step. Packing
writes the new files whole, then starts the next journal; a reader that finds both uses the packed files.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.records.write import write_bytes, write_json

PACK_STEPS = 512
STATES_BYTES = 256 * 2**20
"""Hidden states (level "states") that one side keeps; later steps keep fingerprints only."""
CHECKSUMS = "checksums.json"


class Recorded(Protocol):
    """A step that can be written: plain columns, and tensors under names."""

    step: int

    @property
    def columns(self) -> pa.Schema:
        """Names and types of what `to_json` returns."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors as plain JSON types."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name."""

    def set_tensors(self, found: dict[str, Tensor]) -> None:
        """Take the tensors that were read back."""

    def drop_states(self) -> None:
        """Forget the tensors that count against the limit of bytes."""

    def state_bytes(self) -> int:
        """Bytes of the tensors that count against the limit."""


class Journal:
    """One side's folder. Tensors of a step lie in `journal-N.bin`, one after the other, before its line is written.

    Args:
        folder: made if missing; must not hold another run.
        max_bytes: bytes of hidden states (level "states") to keep; later steps keep fingerprints only.

    Raises:
        ConfigError: the folder cannot be written to, or holds a run already.
    """

    def __init__(self, folder: Path, max_bytes: int = STATES_BYTES) -> None:
        """Open the first journal."""
        self.folder, self.left = folder, max_bytes
        self.pack_number = 0
        self.steps: list[Recorded] = []
        self.sums: dict[str, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConfigError(f"{folder} is not empty; choose another --out")
            self._open()
        except OSError as error:
            raise ConfigError(
                f"cannot write {folder}: {error.strerror or error}; choose another --out"
            ) from error

    def add(self, step: Recorded) -> None:
        """Append one step; it is on disk when this returns."""
        self.left -= step.state_bytes()
        if self.left < 0:
            step.drop_states()
        tensors = {}
        for name, tensor in step.tensors().items():
            data = as_bytes(tensor)
            self.bin.write(data)
            tensors[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), len(data)]
        line = json.dumps({**step.to_json(), "tensors": tensors}, separators=(",", ":"), allow_nan=False)
        data = line.encode()
        self.lines.write(b"%08x %s\n" % (zlib.crc32(data), data))
        self.steps.append(step)
        if len(self.steps) >= PACK_STEPS:
            self._pack()

    def close(self) -> None:
        """Pack what is left and remove the journal."""
        self._pack()
        self._shut()

    def _open(self) -> None:
        stem = self.folder / f"journal-{self.pack_number:05d}"
        self.open_files = ExitStack()
        self.lines = self.open_files.enter_context(stem.with_suffix(".jsonl").open("wb", buffering=0))
        self.bin = self.open_files.enter_context(stem.with_suffix(".bin").open("wb", buffering=0))

    def _shut(self) -> None:
        self.open_files.close()
        for path in (self.lines.name, self.bin.name):
            Path(path).unlink(missing_ok=True)

    def _pack(self) -> None:
        if not self.steps:
            return
        stem = f"{self.pack_number:05d}"
        self._write(f"hidden-{stem}.safetensors", save(_tensors(self.steps)))
        table = pa.Table.from_pylist([step.to_json() for step in self.steps], schema=self.steps[0].columns)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._write(f"steps-{stem}.parquet", sink.getvalue().to_pybytes())
        write_json(self.folder / CHECKSUMS, self.sums)
        self._shut()
        self.steps = []
        self.pack_number += 1
        self._open()

    def _write(self, name: str, data: bytes) -> None:
        self.sums[name] = hashlib.sha256(data).hexdigest()
        write_bytes(self.folder / name, data)


def as_bytes(tensor: Tensor) -> bytes:
    """Raw little-endian bytes of a tensor of any dtype."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensors(steps: list[Recorded]) -> dict[str, Tensor]:
    """Tensors of many steps under names that carry the step."""
    return {f"{name}.{s.step}": tensor.contiguous() for s in steps for name, tensor in s.tensors().items()}
