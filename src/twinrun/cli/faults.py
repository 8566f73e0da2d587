"""`twinrun faults`: plant every known bug and show that each is caught and named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.cli.common import JsonOption, console, emit, moves, progress

if TYPE_CHECKING:
    from rich.table import Table

    from twinrun.faults.suite import Suite

EPILOG = """Examples:

twinrun faults --list

twinrun faults --name value-scale-off --dtype bfloat16

twinrun faults --out faults.json

Exit code 0: every fault caught and no clean run alarmed; 1: one was missed or invented."""


WIDE = 150
"""Columns of the table where no terminal says how many there are."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("faults", epilog=EPILOG)
    def faults(
        name: Annotated[
            list[str] | None, typer.Option("--name", "-n", help="a fault; may be repeated")
        ] = None,
        dtype: Annotated[
            list[str] | None, typer.Option("--dtype", help="a precision; may be repeated")
        ] = None,
        families: Annotated[int, typer.Option(min=1, help="models that each fault is planted in")] = 1,
        clean: Annotated[
            str, typer.Option(help="runs without faults: none, same (grid) or all (families)")
        ] = "same",
        listed: Annotated[bool, typer.Option("--list", help="only list the faults")] = False,
        out: Annotated[
            str | None,
            typer.Option(
                "--out", "-o", help="write the record to this file; an earlier one there is continued"
            ),
        ] = None,
        as_json: JsonOption = False,
    ) -> int:
        """Plant real bugs in correct runners: is each caught, at which probe, and is the right place named?"""
        from twinrun.faults.registry import FAULTS, get_fault

        chosen = [get_fault(n).name for n in name or FAULTS]
        if listed:
            return _list(chosen, as_json)

        from twinrun.faults.suite import DTYPES, run_suite
        from twinrun.models.load import quiet_transformers
        from twinrun.records.write import write_json

        quiet_transformers()
        with progress(None, "planting") as (bar, task):
            found = run_suite(
                chosen,
                tuple(dtype or DTYPES),
                families=families,
                clean=clean,  # type: ignore[arg-type]  # checked by the callee
                found=_earlier(out),
                on_row=None if out is None else lambda suite: write_json(out, suite.to_json()),
                on_progress=moves(bar, task),
            )
        record = found.to_json()
        if out is not None:
            write_json(out, record)
        screen = console(as_json)
        screen.print(_table(found), width=None if screen.is_terminal else WIDE)
        total = record["summary"]
        screen.print(
            f"{total['caught']} of {total['planted']} caught, {total['named']} named; "
            f"{total['clean']} clean runs, {total['false_alarms']} false alarms"
        )
        emit(record, as_json)
        return 0 if found.passed else 1


def _earlier(out: str | None) -> Suite | None:
    """Rows of a run that was cut off, from its record."""
    import json
    from pathlib import Path

    from twinrun.errors import ConfigError
    from twinrun.faults.suite import Suite

    if out is None or not Path(out).exists():
        return None
    try:
        return Suite.from_json(json.loads(Path(out).read_text("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(f"{out} is no record of this command ({error}); choose another --out") from error


def _list(names: list[str], as_json: bool) -> int:
    from rich.table import Table

    from twinrun.faults.registry import get_fault

    table = Table("fault", "sits in", "what goes wrong", "needs", box=None)
    faults = [get_fault(name) for name in names]
    for fault in faults:
        table.add_row(fault.name, fault.site.kind, fault.summary, ", ".join(fault.needs))
    console(as_json).print(table)
    fields = ("name", "summary", "where", "needs", "thread", "runners")
    emit({"faults": [{k: getattr(f, k) for k in fields} | {"site": f.site.kind} for f in faults]}, as_json)
    return 0


def _table(found: Suite) -> Table:
    """One line a planted run. Ratio and sweep are shares of what the rule allows: above 1 convicts."""
    from rich.table import Table

    table = Table("fault", "model", "caught", "ratio", "sweep", "at probe", "named", box=None)
    for row in found.faults:
        numbers = ["-" if n is None else f"{n:.2g}" for n in (row.by_ratio, row.by_sweep)]
        caught = "yes" if row.caught else "[bold red]MISSED[/]"
        named = row.named if row.right else f"[bold red]WRONG[/] {row.named}"
        table.add_row(row.fault, f"{row.family}, {row.dtype}", caught, *numbers, row.probe, named)
    for alarm in found.alarms:
        model = f"{alarm.family}, {alarm.dtype}"
        table.add_row("none", model, "[bold red]ALARM[/]", "-", "-", alarm.runner, alarm.named)
    return table
