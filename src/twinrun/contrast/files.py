"""Steps and trajectories as files: JSONL and Parquet, one row each, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from twinrun.contrast.samples import StepSample, Trajectory
from twinrun.errors import SamplesError
from twinrun.records.write import whole_file

Kind = Literal["steps", "trajectories"]
Row = StepSample | Trajectory
ROWS_AT_ONCE = 4096
"""Rows held while a Parquet file is written or read."""
_IDS = pa.list_(pa.int32())
_NUMBERS = pa.list_(pa.float32())
SCHEMAS: dict[str, pa.Schema] = {
    "steps": pa.schema(
        {
            "prompt_id": pa.string(),
            "step": pa.int32(),
            "tokens": pa.list_(pa.string()),
            "token_ids": _IDS,
            "weights": _NUMBERS,
            "kl": pa.float32(),
        }
    ),
    "trajectories": pa.schema(
        {
            "prompt_id": pa.string(),
            "index": pa.int64(),
            "question": pa.string(),
            "answer": pa.string(),
            "finished": pa.bool_(),
            "prompt_ids": _IDS,
            "answer_ids": _IDS,
            "kl": _NUMBERS,
            "dropped_mass": pa.float32(),
        }
    ),
}
"""Columns of both Parquet files, in order; the JSONL has the same keys."""


def write_jsonl(path: str | Path, rows: Iterable[Row]) -> Path:
    """Write one JSON object a line, UTF-8; equal rows give equal bytes.

    Raises:
        ConfigError: the place cannot be written to, or the disk is full; nothing is left half written.
    """
    with whole_file(path) as file:
        for row in rows:
            file.write(json_line(row.to_json()))
    return Path(path)


def write_parquet(path: str | Path, rows: Iterable[Row], kind: Kind) -> Path:
    """Write a Parquet file with the columns of `SCHEMAS[kind]`.

    Raises:
        ConfigError: the place cannot be written to, or the disk is full; nothing is left half written.
    """
    with whole_file(path) as file, pq.ParquetWriter(file, SCHEMAS[kind], compression="zstd") as writer:
        for chunk in _chunks(rows):
            writer.write_table(table_of(chunk, kind))
    return Path(path)


def read_steps(path: str | Path) -> Iterator[StepSample]:
    """Yield the steps of a `.jsonl` or `.parquet` file.

    Raises:
        SamplesError: no such file, or a row that is none; names the file and the line or row.
    """
    return _read(Path(path), StepSample.of)


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """Yield the trajectories of a `.jsonl` or `.parquet` file.

    Raises:
        SamplesError: no such file, or a row that is none; names the file and the line or row.
    """
    return _read(Path(path), Trajectory.of)


def table_of(rows: Iterable[Row], kind: Kind) -> pa.Table:
    """Return rows as an Arrow table."""
    return pa.Table.from_pylist([row.to_json() for row in rows], schema=SCHEMAS[kind])


def json_line(record: dict[str, Any]) -> bytes:
    """One line of JSONL; half of a surrogate pair is written as its escape."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of a JSONL file; empty lines are passed over.

    Raises:
        SamplesError: an unreadable file, or a line that is no JSON; names file and line.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
    except OSError as error:
        raise SamplesError(f"cannot read {path}: {error.strerror or error}; give another file") from error
    except ValueError as error:
        raise SamplesError(f"{path} line {number} is not valid JSON ({error}); mend or remove it") from error


def _read(path: Path, build: Any) -> Iterator[Any]:
    for where, row in _parquet_rows(path) if path.suffix == ".parquet" else json_lines(path):
        try:
            found = build(row)
        except SamplesError as error:
            raise SamplesError(f"{path} line {where}: {error}") from error
        yield found


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        raise SamplesError(f"cannot read {path}: {error}; give another file") from error


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
