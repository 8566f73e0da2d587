"""What all commands share: consoles, the JSON line, progress, and the options that pick a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from twinrun.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from twinrun.models.model import Model

MODEL_HELP = "builtin:NAME, a checkpoint folder, or a hub name"
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="last line of stdout is one JSON record; text goes to stderr")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that comes with the checkpoint")
]


def console(as_json: bool) -> Console:
    """Return the console for human text: stdout, or stderr when stdout belongs to the JSON record."""
    return Console(stderr=as_json, highlight=False, soft_wrap=True)


def emit(record: dict[str, Any], as_json: bool) -> None:
    """Print the record as the last line of stdout when JSON was asked for."""
    if as_json:
        sys.stdout.write(json.dumps(record, allow_nan=False, default=str) + "\n")
        sys.stdout.flush()


@contextmanager
def progress(total: float | None, label: str) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar on a terminal's stderr; silent elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        yield bar, bar.add_task(label, total=total)


def moves(bar: Progress, task: TaskID) -> Callable[[int, int, str], None]:
    """What a library function takes as `on_progress`: (done, total, what) moves the bar."""
    return lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def report(
    record: Mapping[str, Any],
    parts: Iterable[Any],
    as_json: bool,
    *,
    picture: tuple[Path, Callable[[], bytes]] | None = None,
    beside: str = "",
) -> None:
    """Show a record for people, write its picture beside the files that are there already, and emit it."""
    from twinrun.records.write import write_bytes

    shown = console(as_json)
    for part in parts:
        shown.print(part)
    if picture is not None:
        path, draw = picture
        write_bytes(path, draw())
        shown.print(f"written: {path.parent}/{beside}, {path.name}", markup=False)
    emit(dict(record), as_json)


def open_model(
    name: str, dtype: str = "auto", device: str = "auto", *, trust_remote_code: bool = False
) -> Model:
    """Load a model for a command, quietly."""
    from twinrun.models.load import load, quiet_transformers

    quiet_transformers()
    return load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def read_prompts(
    file: str | None, field: str | None, inline: list[str] | None, *, otherwise: str = ""
) -> list[str]:
    """Collect prompts: given on the command line, one a line of a text file, or one field of a JSONL file.

    Raises:
        ConfigError: an unreadable file, a malformed line (file and line number), a missing field, or
            nothing at all.
    """
    found = list(inline or [])
    if file is not None:
        found += _read_file(file, field)
    if not found:
        raise ConfigError(f"no prompts; give --prompt TEXT or --file FILE{otherwise}")
    for number, text in enumerate(found, 1):
        if not text.strip():
            raise ConfigError(f"prompt {number} is empty; give at least one token")
    return found


def _read_file(file: str, field: str | None) -> list[str]:
    try:
        with open(file, encoding="utf-8") as lines:
            rows = [line.rstrip("\n") for line in lines]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not file.endswith(".jsonl") and field is None:
        return ["\n".join(rows)] if any(rows) else []
    return [
        _field_of(file, number, row, field or "text") for number, row in enumerate(rows, 1) if row.strip()
    ]


def _field_of(file: str, number: int, row: str, field: str) -> str:
    try:
        value = json.loads(row)[field]
    except ValueError as error:
        raise ConfigError(
            f"{file} line {number} is not valid JSON ({error}); mend or remove the line"
        ) from error
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} line {number} has no field {field!r}; name another with --field"
        ) from error
    if not isinstance(value, str):
        raise ConfigError(f"{file} line {number}: field {field!r} is {type(value).__name__}, not text")
    return value
