"""Write a run to disk while it goes on: a journal of single steps, packed into Parquet and safetensors now and then.

A step is in the journal as soon as its line is whole, so a killed run is readable up to its last line. Packing
writes the new files whole, then starts the next journal; a reader that finds both uses the packed files. Nothing waits
for the disk: a kill loses no file, a loss of power may, and the checksums tell.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.records.write import to_json, write_bytes

PACK_STEPS = 512
STATES_BYTES = 256 * 2**20
"""Hidden states (level "states") that one side keeps; later steps keep fingerprints only."""
WRITE_BYTES = 2**20
"""Bytes of tensors that are gathered before they are written."""
CHECKSUMS = "checksums.json"
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


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

    def add(self, steps: Sequence[Recorded]) -> None:
        """Append steps; they are on disk when this returns."""
        while steps:
            room = PACK_STEPS - len(self.steps)
            self._append(steps[:room])
            steps = steps[room:]
            if len(self.steps) >= PACK_STEPS:
                self._pack()

    def close(self) -> None:
        """Pack what is left and remove the journal."""
        self._pack()
        self._shut()

    def _append(self, steps: Sequence[Recorded]) -> None:
        """Write tensors, then the lines that tell of them: what a kill leaves half done has no line."""
        tensors, lines = bytearray(), bytearray()
        for step in steps:
            self.left -= step.state_bytes()
            if self.left < 0:
                step.drop_states()
            kept = {}
            for name, tensor in step.tensors().items():
                data = as_bytes(tensor)
                tensors += data
                kept[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), len(data)]
            line = _ENCODER.encode({**step.to_json(), "tensors": kept}).encode()
            lines += b"%08x %s\n" % (zlib.crc32(line), line)
            if len(tensors) > WRITE_BYTES:
                self.bin.write(tensors)
                tensors = bytearray()
        self.bin.write(tensors)
        self.lines.write(lines)
        self.steps += steps

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
        with ThreadPoolExecutor(1) as beside:  # much of both is waiting for the disk
            packed = beside.submit(self._write, f"steps-{stem}.parquet", lambda: _table(self.steps))
            self._write(f"hidden-{stem}.safetensors", lambda: _tensors(self.steps))
            packed.result()
        write_bytes(self.folder / CHECKSUMS, to_json(self.sums).encode() + b"\n", sync=False)
        self._shut()
        self.steps = []
        self.pack_number += 1
        self._open()

    def _write(self, name: str, make: Callable[[], bytes]) -> None:
        data = make()
        self.sums[name] = hashlib.sha256(data).hexdigest()
        write_bytes(self.folder / name, data, sync=False)


def as_bytes(tensor: Tensor) -> bytes:
    """Raw little-endian bytes of a tensor of any dtype."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensors(steps: list[Recorded]) -> bytes:
    """Tensors of many steps, under names that carry the step, as a safetensors file."""
    found = {f"{name}.{s.step}": tensor.cpu() for s in steps for name, tensor in s.tensors().items()}
    if any(tensor.dtype == torch.bfloat16 for tensor in found.values()):
        return save({name: tensor.contiguous().clone() for name, tensor in found.items()})
    # NOTE: the same bytes in a ninth of the time, for there is no search for shared memory; numpy has no bfloat16.
    return bytes(save_arrays({name: tensor.contiguous().numpy() for name, tensor in found.items()}))


def _table(steps: list[Recorded]) -> bytes:
    """Columns of many steps as a Parquet file."""
    table = pa.Table.from_pylist([step.to_json() for step in steps], schema=steps[0].columns)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)  # numbers that hardly repeat
    found: bytes = sink.getvalue().to_pybytes()
    return found
