"""The problems to sample: a JSONL file, the generated arithmetic, or GSM8K where its file is; each with an id."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinrun.errors import ConfigError, MissingBackendError, near_names

ARITHMETIC, GSM8K = "builtin:arithmetic", "gsm8k"
DEFAULT_LIMIT = 1000
"""Problems taken of a source without an end; as many as the paper took."""
DATA_FOLDER = "TWINRUN_DATA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One problem: its id, its text, and where it stood."""

    prompt_id: str
    text: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a source held.

    Attributes:
        items: in order, each id once.
        bad: malformed lines that were passed over, each with file and line number.
        duplicates: lines that said the same again as an earlier one (same id, same text), and were passed over.
    """

    items: tuple[Question, ...]
    bad: tuple[str, ...] = ()
    duplicates: int = 0


def read_questions(
    source: str | Path, *, limit: int | None = None, seed: int = 0, skip_bad: bool = False
) -> Questions:
    """Return the problems of a source.

    Args:
        source: "builtin:arithmetic" (training split), "gsm8k" (`gsm8k_train.jsonl` in the folder `TWINRUN_DATA`), or
            a JSONL file with `question` and, if it has one, `id` in each line; without `id` the hash of the text
            serves.
        limit: at most so many; None is 1,000 of builtin:arithmetic and all of a file.
        seed: stream of builtin:arithmetic.
        skip_bad: pass malformed lines over and count them, instead of refusing the file.

    Raises:
        ConfigError: an unreadable or empty source, a malformed line (file and line number), or one id with two texts.
        MissingBackendError: GSM8K is asked for and not on this machine.

    Example:
        >>> [q.prompt_id for q in read_questions("builtin:arithmetic", limit=2).items]
        ['arithmetic/train/0/0', 'arithmetic/train/0/1']
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1 problem, got {limit}")
    name = str(source)
    if name == ARITHMETIC:
        return Questions(items=tuple(_arithmetic(DEFAULT_LIMIT if limit is None else limit, seed)))
    if name.startswith("builtin:"):
        raise ConfigError(
            f"no problems called {name!r}.{near_names(name, [ARITHMETIC])} or give a JSONL file"
        )
    return _collect(_lines(_gsm8k() if name == GSM8K else Path(source)), limit, skip_bad)


def _arithmetic(count: int, seed: int) -> Iterator[Question]:
    from twinrun.tasks.arithmetic import problem

    for i in range(count):
        found = problem(i, seed=seed, split="train")
        yield Question(
            prompt_id=f"arithmetic/train/{seed}/{i}", text=found.question, where=f"{ARITHMETIC} {i}"
        )


def _gsm8k() -> Path:
    folder = os.environ.get(DATA_FOLDER)
    path = Path(folder or ".") / "gsm8k_train.jsonl"
    if folder is None or not path.is_file():
        raise MissingBackendError(
            f"GSM8K is not here; put gsm8k_train.jsonl into a folder and name that in {DATA_FOLDER}, or give the file"
        )
    return path


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path} line {number}", line
    except OSError as error:
        hint = near_names(str(path), [ARITHMETIC, GSM8K])
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}; give a JSONL file.{hint}"
        ) from error


def _collect(lines: Iterable[tuple[str, bytes]], limit: int | None, skip_bad: bool) -> Questions:
    items: dict[str, Question] = {}
    bad: list[str] = []
    duplicates = 0
    for where, line in lines:
        if limit is not None and len(items) >= limit:
            break
        found = _question(where, line)
        if isinstance(found, str):
            if not skip_bad:
                raise ConfigError(f"{found}; mend or remove the line, or pass --skip-bad")
            bad.append(found)
            continue
        first = items.setdefault(found.prompt_id, found)
        if first.text != found.text:
            raise ConfigError(
                f"{where}: id {found.prompt_id!r:.60} stands for another question at {first.where}; "
                "give each problem its own id"
            )
        duplicates += first is not found
    if not items:
        raise ConfigError("the data holds no problem; give lines with a question")
    return Questions(items=tuple(items.values()), bad=tuple(bad), duplicates=duplicates)


def _question(where: str, line: bytes) -> Question | str:
    """One problem, or what is wrong with the line."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:  # also bytes that are not UTF-8
        return f"{where} is not valid JSON ({error})"
    if not isinstance(row, dict):
        return f"{where} is {type(row).__name__}, not an object with a question"
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        return f"{where} has no text under 'question'"
    name = row.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        return f"{where}: 'id' is {type(name).__name__}, not text or an integer"
    try:
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        f"{name}".encode()
    except UnicodeEncodeError:
        return f"{where} holds half of a surrogate pair, which is no text"
    return Question(prompt_id=digest if name in (None, "") else str(name), text=text, where=where)
