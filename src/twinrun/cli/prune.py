"""`twinrun prune`: everything about dropping prompt tokens inside the prefill, one file a verb."""

from __future__ import annotations

import importlib

import typer

VERBS = ("saliency", "train", "bench", "eval")
"""Each is registered by `twinrun.cli.prune_VERB`."""


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        name="prune",
        help="Drop prompt tokens inside the prefill, and say what it gains and what it costs.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for verb in VERBS:
        importlib.import_module(f"twinrun.cli.prune_{verb}").register(group)
    app.add_typer(group)
