"""`twinrun runners`: the ways to run a model."""

from __future__ import annotations

import typer

from twinrun.cli.common import JsonOption, console, emit


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("runners")
    def runners(as_json: JsonOption = False) -> None:
        """List the runners: the plain way and the faster ways."""
        from rich.table import Table

        from twinrun.runners.registry import FAST, RUNNERS

        table = Table("name", "exact", "what it does", "limits", box=None)
        for name, kind in {**RUNNERS, **FAST}.items():
            table.add_row(name, "yes" if kind.exact else "lossy", kind.summary, kind.limits)
        console(as_json).print(table)
        rows = [
            {"name": name, "exact": kind.exact, "summary": kind.summary, "limits": kind.limits}
            for name, kind in {**RUNNERS, **FAST}.items()
        ]
        emit({"runners": rows}, as_json)
