"""Answers on disk: a line an item, appended as soon as its batch is done, so that a killed run loses one batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinrun.bench.rows import hold_request
from twinrun.errors import ConfigError
from twinrun.quality.team import Team

PATTERN = "answers.*.jsonl"
Place = tuple[str, str]
"""Side and key of an item."""


class Store:
    """`DIR/request.json`, and `DIR/answers.N.jsonl` of process N; without a folder, memory alone.

    Args:
        folder: made if missing; None keeps nothing on disk.
        request: what the answers belong to.
        team: the processes that share the work.
        resume: go on with what is there, whichever process wrote it.

    Raises:
        ConfigError: as `twinrun.bench.rows.hold_request`, or a damaged line.
    """

    def __init__(
        self, folder: str | Path | None, request: Mapping[str, Any], team: Team, *, resume: bool = False
    ) -> None:
        """Read what is there, or begin."""
        if resume and folder is None:
            raise ConfigError("resume needs the folder to go on with; give out (--out DIR)")
        self.folder = None if folder is None else Path(folder)
        self.done: dict[Place, dict[str, Any]] = {}
        self._mine: list[dict[str, Any]] = []
        self._team = team
        if self.folder is None:
            return
        if team.is_first:
            hold_request(self.folder, request, resume=resume)
        team.wait()
        if not team.is_first:
            hold_request(self.folder, request, resume=True)
        self._own = self.folder / PATTERN.replace("*", str(team.rank))
        for place in sorted(self.folder.glob(PATTERN)):
            self.done |= {_place(line): line for line in _read(place, mend=place == self._own)}
        team.wait()  # nobody appends before all have read

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append the lines of a batch; they are on disk when this returns."""
        self._mine += lines
        if self.folder is None:
            return
        text = "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in lines)
        try:
            with open(self._own, "ab") as file:
                file.write(text.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigError(
                f"cannot write {self._own}: {error.strerror or error}; choose another --out"
            ) from error

    def all(self) -> dict[Place, dict[str, Any]]:
        """Return the answers of all processes, those from before included; the same on each."""
        return self.done | {_place(line): line for line in self._team.gather(self._mine)}


def _place(line: Mapping[str, Any]) -> Place:
    return line["side"], line["key"]


def _read(place: Path, *, mend: bool) -> list[dict[str, Any]]:
    """Read whole lines.

    A last one without its line break was being written when the run was killed: it is left out, and cut off where this
    process goes on writing.
    """
    raw = place.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if mend and len(whole) < len(raw):
        with open(place, "r+b") as file:
            file.truncate(len(whole))
    found = []
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            row["side"], row["key"], row["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{place} line {number} is damaged ({error}); choose another --out") from error
        found.append(row)
    return found
