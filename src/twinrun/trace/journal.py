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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.records.write import write_bytes, write_json
from twinrun.trace.step import TracedStep

PACK_STEPS = 512
STATES_BYTES = 256 * 2**20
"""Hidden states (level "states") that one side keeps; later steps keep fingerprints only."""
CHECKSUMS = "checksums.json"
ROW = pa.struct(
    [
        ("position", pa.int64()),
        ("token", pa.int64()),
        ("logprob", pa.float64()),
        ("top_ids", pa.list_(pa.int64())),
        ("top_probs", pa.list_(pa.float64())),
        ("entropy", pa.float64()),
        ("margin", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("seconds", pa.float64()),
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("position_ids", pa.list_(pa.int64())),
        ("cache", pa.list_(pa.int64())),
        ("keys", pa.list_(pa.int64())),
        ("rows", pa.list_(ROW)),
    ]
)


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
        self.steps: list[TracedStep] = []
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

    def add(self, step: TracedStep) -> None:
        """Append one step; it is on disk when this returns."""
        if step.states is not None:
            self.left -= step.states.numel() * step.states.element_size()
            if self.left < 0:
                step.states = None
        tensors = {}
        for name, tensor in (("hidden", step.hidden), ("states", step.states)):
            if tensor is not None:
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
        table = pa.Table.from_pylist([step.to_json() for step in self.steps], schema=SCHEMA)
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
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _tensors(steps: list[TracedStep]) -> dict[str, Tensor]:
    """Tensors of many steps under names that carry the step."""
    found: dict[str, Any] = {}
    for step in steps:
        if step.hidden is not None:
            found[f"hidden.{step.step}"] = step.hidden.contiguous()
        if step.states is not None:
            found[f"states.{step.step}"] = step.states.contiguous()
    return found
