"""Read one side of a recorded trace: packed files, then the journal of a run that was killed."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from twinrun.errors import TraceError
from twinrun.trace.journal import CHECKSUMS, Recorded

Step = TypeVar("Step", bound=Recorded)
Read = Callable[[dict[str, Any]], Step]
"""Makes a step of what its `to_json` wrote."""


def read_steps(folder: Path, read: Read[Step]) -> list[Step]:
    """Return the steps of one side, in order.

    Args:
        folder: what a `Journal` wrote.
        read: `from_json` of the steps' class.

    Raises:
        TraceError: a file is missing, truncated or changed (checksums), a journal line before the last is broken,
            or steps are missing.
    """
    sums = _checksums(folder)
    for path in folder.glob("steps-*.parquet"):
        journal = folder / f"journal-{path.stem.removeprefix('steps-')}.jsonl"
        if path.name not in sums and not journal.exists():
            raise TraceError(f"{folder / CHECKSUMS} does not know {path.name}; record the trace again")
    steps: list[Step] = []
    for name in sorted(n for n in sums if n.endswith(".parquet")):
        number = name.removeprefix("steps-").removesuffix(".parquet")
        tensors = _tensors(_checked(folder, f"hidden-{number}.safetensors", sums), folder)
        for found in _rows(_checked(folder, name, sums), folder / name):
            step = read(found)
            step.set_tensors(tensors.get(step.step, {}))
            steps.append(step)
    for path in sorted(folder.glob("journal-*.jsonl")):
        if f"steps-{path.stem.removeprefix('journal-')}.parquet" not in sums:
            steps += _journal(path, read)
    numbers = [step.step for step in steps]
    if numbers != list(range(len(numbers))):
        raise TraceError(
            f"{folder} has steps {numbers[:8]}..., not 0 to {len(numbers) - 1}; record the trace again"
        )
    return steps


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        return {str(k): str(v) for k, v in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise TraceError(f"{path} is not a list of checksums ({error}); record the trace again") from error


def _checked(folder: Path, name: str, sums: dict[str, str]) -> bytes:
    """Bytes of a packed file, which must be those that were written."""
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TraceError(
            f"{path} cannot be read ({error.strerror or error}); record the trace again"
        ) from error
    if name not in sums or hashlib.sha256(data).hexdigest() != sums[name]:
        raise TraceError(f"{path} was truncated or changed after it was written; record the trace again")
    return data


def _rows(data: bytes, path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(data)).to_pylist()
        return found
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path} is not a Parquet file ({error}); record the trace again") from error


def _tensors(data: bytes, folder: Path) -> dict[int, dict[str, Tensor]]:
    """Tensors of each step by name."""
    found: dict[int, dict[str, Tensor]] = {}
    try:
        for key, tensor in load(data).items():
            name, _, step = key.rpartition(".")
            found.setdefault(int(step), {})[name] = tensor
        return found
    except SafetensorError as error:
        raise TraceError(f"{folder}: not a safetensors file ({error}); record the trace again") from error


def _journal(path: Path, read: Read[Step]) -> Iterator[Step]:
    """Steps of a journal. A last line or tensor that a kill cut off is left out; any other damage is an error."""
    lines = path.read_bytes().split(b"\n")
    data = path.with_suffix(".bin").read_bytes() if path.with_suffix(".bin").exists() else b""
    at = 0
    for number, line in enumerate(lines[:-1], 1):  # behind the last newline lies nothing, or half a line
        checksum, _, text = line.partition(b" ")
        if checksum.decode("ascii", "replace") != f"{zlib.crc32(text):08x}":
            raise TraceError(f"{path} line {number} was changed after it was written; record the trace again")
        found = json.loads(text)
        step = read(found)
        tensors: dict[str, Tensor] = {}
        for name, (dtype, shape, size) in found["tensors"].items():
            if at + size > len(data):
                return
            kind: torch.dtype = getattr(torch, dtype)
            tensors[name] = torch.frombuffer(bytearray(data[at : at + size]), dtype=kind).reshape(shape)
            at += size
        step.set_tensors(tensors)
        yield step
