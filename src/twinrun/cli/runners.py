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

        from twinrun.runners.registry import CANVAS, FAST, PRUNED, RUNNERS

        kinds = {n: (k.summary, k.exact, k.limits) for n, k in {**RUNNERS, **FAST}.items()} | PRUNED | CANVAS
        table = Table("name", "exact", "what it does", "limits", box=None)
        for name, (summary, exact, limits) in kinds.items():
            table.add_row(name, "yes" if exact else "lossy", summary, limits)
        console(as_json).print(table)
        rows = [
            {"name": name, "exact": exact, "summary": summary, "limits": limits}
            for name, (summary, exact, limits) in kinds.items()
        ]
        emit({"runners": rows}, as_json)
