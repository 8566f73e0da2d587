"""What the scripts share around a measurement: flags from a dataclass, bars, the table, the record on disk."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from _machine import Machine

from twinrun.bench.timing import PairedRatio, Timing
from twinrun.errors import TwinrunError
from twinrun.records.env import environment

RESULTS = Path(__file__).resolve().parent / "results"


class Quickened(Protocol):
    """A config dataclass that knows its small version."""

    @classmethod
    def quick(cls) -> Any:
        """Sizes for a smoke test."""


C = TypeVar("C", bound=Quickened)
Measure = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Request:
    """What a script was asked for."""

    config: Any
    out: Path
    quick: bool


def parse(name: str, config: type[C], about: str | None, argv: Sequence[str] | None) -> Request:
    """Read the command line; one flag a field of `config`, whose defaults `--quick` replaces by small ones."""
    parser = ArgumentParser(
        f"{name}.py", description=about, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that the script works, judges nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / f"{name}.json", help="file of the record (default: %(default)s)"
    )
    defaults: Any = config()
    for each in fields(defaults):
        default = getattr(defaults, each.name)
        text = f"{each.metadata['help']} (default: {default})"
        parser.add_argument("--" + each.name.replace("_", "-"), type=type(default), help=text)
    given = vars(parser.parse_args(argv))
    quick, out = given.pop("quick"), given.pop("out")
    chosen = {key: value for key, value in given.items() if value is not None}
    return Request(replace(config.quick() if quick else defaults, **chosen), out, quick)


def at_least(name: str, value: float | None, limit: float, unit: str = "ratio") -> dict[str, Any]:
    """A bar that a value must reach; an unknown value does not."""
    passed = value is not None and value >= limit
    return {"name": name, "unit": unit, "value": value, "at_least": limit, "passed": passed}


def at_most(name: str, value: float | None, limit: float, unit: str = "ratio") -> dict[str, Any]:
    """A bar that a value must stay within; an unknown value does not."""
    passed = value is not None and value <= limit
    return {"name": name, "unit": unit, "value": value, "at_most": limit, "passed": passed}


def run(
    name: str, about: str, config: type[C], measure: Measure, text: str | None, argv: Sequence[str] | None
) -> int:
    """Read the command line, measure, write and print the record; a refusal is one line and its exit code."""
    request = parse(name, config, text, argv)
    machine = Machine()
    try:
        found = measure(request.config)
    except TwinrunError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    return finish(request, name, about, found, machine)


def finish(request: Request, name: str, about: str, found: dict[str, Any], machine: Machine) -> int:
    """Write the record, print the table and, as the last line, the JSON. Return 1 if a bar was missed, else 0."""
    bars = found["bars"]
    record = {
        "benchmark": name,
        "schema": 1,
        "about": about,
        "quick": request.quick,
        "config": asdict(request.config),
        **found,
        "bars_apply": not request.quick,
        "passed": all(bar["passed"] for bar in bars),
        "machine": machine.to_json(),
        "environment": environment(),
    }
    line = json.dumps(record, allow_nan=False)
    write_atomically(request.out, json.dumps(record, allow_nan=False, indent=1) + "\n")
    print(table(record))
    print(f"record: {request.out}", file=sys.stderr)
    print(line)
    return 0 if record["passed"] or request.quick else 1


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step, so that a run that is cut off leaves the old record whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def timings_json(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Return the arms as JSON types."""
    return {name: timing.to_json() for name, timing in timings.items()}


def ratios_json(ratios: Mapping[str, PairedRatio]) -> dict[str, Any]:
    """Return the ratios as JSON types."""
    return {name: found.to_json() for name, found in ratios.items()}


def table(record: Mapping[str, Any]) -> str:
    """Return the record for a reader: arms, ratios, verdicts, bars."""
    lines = [
        f"{record['benchmark']}: {record['about']}",
        f"{'arm':<44}{'median':>12}{'p10':>12}{'p90':>12}{'runs':>6}",
    ]
    for name, arm in record["arms"].items():
        times = (arm["seconds_median"], arm["seconds_p10"], arm["seconds_p90"])
        lines.append(f"{name:<44}" + "".join(f"{t:>10.4g} s" for t in times) + f"{arm['repeats']:>6}")
    lines.append(f"{'ratio':<44}{'median':>12}{'p10':>12}{'p90':>12}")
    for name, found in record["ratios"].items():
        values = (found["ratio_median"], found["ratio_p10"], found["ratio_p90"])
        lines.append(f"{name:<44}" + "".join(f"{v:>11.4g}x" for v in values))
    lines += [
        f"verdict, {name}: {v['verdict']}: {v['reason']}" for name, v in record.get("verdicts", {}).items()
    ]
    lines += [f"{note}" for note in record.get("notes", [])]
    for bar in record["bars"]:
        rule = f"at least {bar['at_least']:g}" if "at_least" in bar else f"at most {bar['at_most']:g}"
        value = "unknown" if bar["value"] is None else f"{bar['value']:.4g}"
        word = ("passed" if bar["passed"] else "MISSED") if record["bars_apply"] else "not judged (--quick)"
        lines.append(f"bar, {bar['name']}: {value} {bar['unit']}, {rule}: {word}")
    quiet, cores = record["machine"]["quiet"], record["machine"]["cores_used_by_others_mean"]
    lines.append(
        f"machine: {'quiet' if quiet else 'SHARED'}, other processes used {cores:.2f} cores on average"
    )
    return "\n".join(lines)


def say(text: str) -> None:
    """Tell on stderr what is being run; these scripts take minutes."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
