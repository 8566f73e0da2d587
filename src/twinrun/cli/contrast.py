"""`twinrun contrast`: the commands of an expert against an amateur, one file each."""

from __future__ import annotations

import importlib

import typer

COMMANDS = (
    "contrast_sample",
    "contrast_show",
    "contrast_check",
    "contrast_train",
    "contrast_merge",
    "contrast_eval",
)


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        name="contrast",
        help="An expert against an amateur (LightReasoner): sample the steps worth learning, look, train, evaluate.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        importlib.import_module(f"twinrun.cli.{name}").register(group)
    app.add_typer(group)
