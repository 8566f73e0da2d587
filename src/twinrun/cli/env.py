"""`twinrun env`: versions and devices, for bug reports."""

from __future__ import annotations

import typer

from twinrun.cli.common import JsonOption, console, emit


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("env")
    def env(as_json: JsonOption = False) -> None:
        """Print versions, processor, devices and the commit, for bug reports."""
        from twinrun.records.env import environment

        record = environment()
        out = console(as_json)
        for key, value in record.items():
            if isinstance(value, dict):
                for name, version in value.items():
                    out.print(f"{name:>14}  {version}", markup=False)
            else:
                out.print(f"{key:>14}  {value}", markup=False)
        emit(record, as_json)
