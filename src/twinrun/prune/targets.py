"""Saliency on disk: each target beside the name and content hash of its sample, so that it can meet no other.

A folder holds `request.json` (what was asked for), `targets-00000.parquet`, ... (`SHARD` samples each, in the order of
the data set) and, when all are there, `index.json`. A shard is whole or absent, so a job that is killed loses at
most the shard it was in, and running it again writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from twinrun.errors import CheckpointError, ConfigError
from twinrun.models.identity import model_fingerprint
from twinrun.models.model import Model
from twinrun.prune.saliency import Saliency
from twinrun.prune.samples import Sample
from twinrun.records.write import write_bytes, write_json

SCHEMA = "twinrun.targets/1"
REQUEST, INDEX = "request.json", "index.json"
SHARD = 64
"""Samples of a shard."""


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"targets-{number:05d}.parquet"


def begin(folder: str | Path, request: Mapping[str, Any]) -> Path:
    """Make a folder of targets, or go on with one that answers the same request.

    Raises:
        ConfigError: the folder answers another request; the key that differs is named.
    """
    place, wanted = Path(folder), {"schema": SCHEMA, **request}
    if (place / REQUEST).exists():
        there = _read_json(place / REQUEST)
        for key in sorted({*there, *wanted}):
            if there.get(key) != json.loads(json.dumps(wanted.get(key))):
                raise ConfigError(
                    f"{place} holds targets with {key}={there.get(key)!r:.120}, not {wanted.get(key)!r:.120}; choose "
                    "another --out"
                )
    else:
        write_json(place / REQUEST, wanted)
    return place


def has_shard(folder: Path, number: int) -> bool:
    """Whether a shard is there (then it is whole)."""
    return (folder / shard_name(number)).exists()


def write_shard(folder: Path, number: int, found: Sequence[Saliency]) -> Path:
    """Write the targets of one shard as a Parquet table, a row a sample; whole or not at all."""
    columns: dict[str, Any] = {
        "sample": pa.array([s.sample.name for s in found], pa.string()),
        "hash": pa.array([s.sample.hash for s in found], pa.string()),
        "answer_tokens": pa.array([len(s.sample.answer) for s in found], pa.int32()),
        "output": pa.array([s.output for s in found], pa.float32()),
    }
    for at, layer in enumerate(found[0].layers):
        rows = [s.values[at].numpy() for s in found]
        columns[f"saliency_{layer}"] = pa.array(rows, pa.list_(pa.float32()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return write_bytes(folder / shard_name(number), sink.getvalue().to_pybytes())


def finish(folder: Path, shards: int) -> bool:
    """Write `index.json` once every shard is there; says whether it did."""
    if not all(has_shard(folder, n) for n in range(shards)):
        return False
    sums = {
        shard_name(n): hashlib.sha256((folder / shard_name(n)).read_bytes()).hexdigest()
        for n in range(shards)
    }
    write_json(folder / INDEX, {**_read_json(folder / REQUEST), "shards": sums})
    return True


class Targets:
    """Stored saliency, handed out to the sample it was computed for and to no other.

    Args:
        folder: what `twinrun prune saliency` wrote.
        model: the model that will be trained against; None checks nothing.

    Attributes:
        layers: layers that have targets.
        request: what was asked for: data, output, precision, fingerprint of the model.

    Raises:
        ConfigError: the job is not finished, or the targets are another model's.
        CheckpointError: files missing or damaged.

    Cost: reads the names and hashes; values are read a shard at a time, the newest eight stay in memory.
    """

    def __init__(self, folder: str | Path, model: Model | None = None) -> None:
        """Open and check."""
        self.folder = Path(folder)
        if not (self.folder / REQUEST).exists():
            raise ConfigError(f"{folder} holds no targets; make some with `twinrun prune saliency`")
        if not (self.folder / INDEX).exists():
            raise ConfigError(
                f"the targets in {folder} are not finished; run the same `twinrun prune saliency` again, it goes on"
            )
        self.request = _read_json(self.folder / INDEX)
        self._sums: dict[str, str] = self.request.pop("shards")
        self.layers: tuple[int, ...] = tuple(self.request["layers"])
        if model is not None and self.request["fingerprint"] != (own := model_fingerprint(model)):
            raise ConfigError(
                f"the targets in {folder} are of {self.request['model']} with fingerprint "
                f"{self.request['fingerprint']}, {model.name} has {own}: other weights or another config; "
                "make new ones with `twinrun prune saliency`"
            )
        self._shard = lru_cache(maxsize=8)(self._read)
        self._places: dict[str, tuple[str, int]] = {}
        for name in self._sums:
            rows = self._shard(name).column("sample").to_pylist()
            self._places |= {sample: (name, row) for row, sample in enumerate(rows)}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sample: Sample) -> bool:
        return sample.name in self._places

    def of(self, sample: Sample) -> Tensor:
        """Saliency `[layers, prompt tokens]` of a sample, float32, signed as computed.

        Raises:
            ConfigError: there is none, or the one of that name was computed for other tokens.
        """
        if sample.name not in self._places:
            raise ConfigError(
                f"sample {sample.name} has no target in {self.folder}; make targets from the same --data"
            )
        shard, row = self._places[sample.name]
        table = self._shard(shard)
        made_for = table.column("hash")[row].as_py()
        if made_for != sample.hash:
            raise ConfigError(
                f"the target called {sample.name} was computed for other tokens (hash {made_for:.8}, the sample has "
                f"{sample.hash:.8}); make the targets again from the present data and tokenizer"
            )
        values = [table.column(f"saliency_{layer}")[row].values.to_numpy() for layer in self.layers]
        return torch.stack([torch.tensor(v) for v in values])

    def _read(self, name: str) -> pa.Table:
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.folder} lacks {name}; make the targets again") from error
        if hashlib.sha256(data).hexdigest() != self._sums[name]:
            raise CheckpointError(
                f"{self.folder / name} is not the shard that was written; make the targets again"
            )
        return pq.read_table(pa.BufferReader(data))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); make the targets again") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is no {SCHEMA} record; make the targets again")
    return found
