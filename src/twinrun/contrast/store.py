"""A folder of samples that grows by whole batches: killed at any instant it holds each of them once or not at all.

`samples.json` says what the folder is of: settings, models, data. Each batch of problems is one file,
`parts/part-NNNNNNN.parquet`, which appears by one rename when all of it is on disk; a batch is done when its file is
there. Batches carry numbers, so the order in which they finish does not matter, nor does a batch that was made
twice: readers and exports go by number. `steps` and `trajectories` as JSONL and Parquet are written at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twinrun.contrast.files import SCHEMAS, json_line, write_jsonl, write_parquet
from twinrun.contrast.samples import StepSample, Trajectory
from twinrun.errors import SamplesError
from twinrun.records.write import whole_file, write_json

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]  # Windows has no such locks

HEADER = "samples.json"
SCHEMA = "twinrun.samples/1"
_PART = re.compile(r"part-(\d{7,})\.parquet")
_STEPS = pa.list_(pa.struct(list(SCHEMAS["steps"])))
_PART_SCHEMA = pa.schema(
    [*SCHEMAS["trajectories"], pa.field("steps", _STEPS), pa.field("refused", pa.string())]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What became of one problem: its answer and the steps kept of it, or why it was refused (then no steps)."""

    trajectory: Trajectory
    steps: tuple[StepSample, ...] = ()
    refused: str | None = None


class SampleStore:
    """Samples in a folder. Open one that exists with `SampleStore(folder)`; begin or resume with `create`.

    Args:
        folder: written by `twinrun contrast sample --out`.

    Raises:
        SamplesError: no samples there, or a header that cannot be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = SampleStore.create(folder, {"settings": {"beta": 0.4}}, parts=1)
        ...     store.append(0, [])
        ...     (store.settings["beta"], sorted(store.done()), list(store.steps()))
        (0.4, [0], [])
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the header."""
        self.folder = Path(folder)
        self.header = _read_header(self.folder)

    @classmethod
    def create(cls, folder: str | Path, identity: Mapping[str, Any], *, parts: int) -> SampleStore:
        """Begin a folder, or open one that was begun with the same settings, models and data.

        Args:
            folder: empty, absent, or holding the samples of an earlier run of the same.
            identity: plain JSON: "settings", "expert", "amateur", "data". A run with another one is refused.
            parts: batches in all.

        Raises:
            SamplesError: the folder holds samples of something else; the first difference is named.
            ConfigError: the folder cannot be written to, or holds other files.
        """
        place = Path(folder)
        header = {"schema": SCHEMA, **identity, "parts": parts}
        if (place / HEADER).exists():
            store = cls(place)
            found = _first_difference(store.header, header, "")
            if found is not None:
                key, old, new = found
                raise SamplesError(
                    f"{place} was sampled with {key} = {old}, this run has {new}; give another --out, or the same again"
                )
            return store
        if place.is_dir() and any(p for p in place.iterdir() if not p.name.startswith(f".{HEADER}.")):
            raise SamplesError(f"{place} is not empty and holds no {HEADER}; give another --out")
        write_json(place / HEADER, header)
        return cls(place)

    @property
    def settings(self) -> dict[str, Any]:
        """How the samples were made."""
        return dict(self.header.get("settings", {}))

    @property
    def parts(self) -> int:
        """Batches in all, done or not."""
        return int(self.header["parts"])

    def done(self) -> set[int]:
        """Numbers of the batches that are here."""
        names = [_PART.fullmatch(p.name) for p in self._parts.iterdir()] if self._parts.is_dir() else []
        return {int(m[1]) for m in names if m is not None}

    @property
    def complete(self) -> bool:
        """Whether every batch is here."""
        return len(self.done()) == self.parts

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder inside the block, and clear away what a killed run left half written.

        The system lets go of the lock when its process ends, however it ends. Where it has no such locks (Windows),
        two runs on one folder write the same batches, and each is there once.

        Raises:
            SamplesError: another run holds it.
        """
        with (self.folder / ".lock").open("ab") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise SamplesError(
                        f"another run is writing to {self.folder}; wait for it, or give another --out"
                    ) from error
                for place in (self.folder, self._parts):
                    for left in place.glob(".*.part"):
                        left.unlink(missing_ok=True)
            yield

    def append(self, number: int, batch: Iterable[Sampled]) -> None:
        """Commit one batch: all of it is here when this returns, none of it if it does not.

        Raises:
            SamplesError: a batch of that number is here already, or the run has no such batch.
            ConfigError: the disk is full, or the place cannot be written to; earlier batches are unharmed.
        """
        path = self._path(number)
        if not 0 <= number < self.parts:
            raise SamplesError(f"batch {number} of a run of {self.parts} batches; they count from 0")
        if path.exists():
            raise SamplesError(f"{path} is here already; a batch is committed once")
        rows = [
            {**s.trajectory.to_json(), "steps": [step.to_json() for step in s.steps], "refused": s.refused}
            for s in batch
        ]
        with whole_file(path) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=_PART_SCHEMA), file, compression="zstd")

    def sampled(self) -> Iterator[Sampled]:
        """Yield what became of every problem, in the order of the data, refused ones too.

        Raises:
            SamplesError: a damaged part; names the file.
        """
        for number in sorted(self.done()):
            yield from self._read(number)

    def trajectories(self) -> Iterator[Trajectory]:
        """Yield every answer, in the order of the data; refused problems have none."""
        return (s.trajectory for s in self.sampled() if s.refused is None)

    def steps(self) -> Iterator[StepSample]:
        """Yield every step kept, by problem in the order of the data, then by place in the answer."""
        return (step for s in self.sampled() for step in s.steps)

    def refused(self) -> Iterator[tuple[Trajectory, str]]:
        """Yield the problems that were refused, and why."""
        return ((s.trajectory, s.refused) for s in self.sampled() if s.refused is not None)

    def export_jsonl(self) -> list[Path]:
        """Write `steps.jsonl`, `trajectories.jsonl` and, if problems were refused, `refused.jsonl` into the folder."""
        paths = [
            write_jsonl(self.folder / "steps.jsonl", self.steps()),
            write_jsonl(self.folder / "trajectories.jsonl", self.trajectories()),
        ]
        if any(True for _ in self.refused()):
            paths.append(self.folder / "refused.jsonl")
            with whole_file(paths[-1]) as file:
                for row, why in self.refused():
                    file.write(json_line({"prompt_id": row.prompt_id, "index": row.index, "reason": why}))
        return paths

    def export_parquet(self) -> list[Path]:
        """Write `steps.parquet` and `trajectories.parquet` into the folder."""
        return [
            write_parquet(self.folder / "steps.parquet", self.steps(), "steps"),
            write_parquet(self.folder / "trajectories.parquet", self.trajectories(), "trajectories"),
        ]

    @property
    def _parts(self) -> Path:
        return self.folder / "parts"

    def _path(self, number: int) -> Path:
        return self._parts / f"part-{number:07d}.parquet"

    def _read(self, number: int) -> Iterator[Sampled]:
        path = self._path(number)
        try:
            with pq.ParquetFile(path) as file:
                rows = file.read(use_threads=False).to_pylist()
            for row in rows:
                steps = tuple(StepSample.of(step) for step in row["steps"])
                yield Sampled(trajectory=Trajectory.of(row), steps=steps, refused=row["refused"])
        except (OSError, KeyError, pa.ArrowException, SamplesError) as error:
            raise SamplesError(
                f"{path} was truncated or changed ({error}); remove it and run the same command to sample it again"
            ) from error


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SamplesError(
            f"{folder} holds no {HEADER}; give a folder that `twinrun contrast sample --out` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise SamplesError(
            f"{path} was truncated or changed ({error}); sample into another folder"
        ) from error
    kind = found.get("schema") if isinstance(found, dict) else type(found).__name__
    if kind != SCHEMA:
        raise SamplesError(f"{path} is {kind!r}, not {SCHEMA!r}; read it with the version that wrote it")
    return dict(found)


def _first_difference(a: Any, b: Any, path: str) -> tuple[str, Any, Any] | None:
    """Return (key, one value, other value) of the first place at which two JSON values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            inside = _first_difference(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
            if inside is not None:
                return inside
        return None
    return None if a == b else (path, a, b)
