"""Options that say how a prompt is pruned."""

from __future__ import annotations

from typing import Annotated

import typer

ScorerOption = Annotated[
    str | None, typer.Option("--scorer", help="folder of trained scorers, or builtin:NAME")
]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="layer:share pairs, 4:0.7,7:0.5,10:0.35; a whole number is tokens (default: the scorers' own)",
    ),
]
FirstOption = Annotated[int, typer.Option("--first", help="first layer that prunes, from 0 (with --keep)")]
EveryOption = Annotated[int, typer.Option("--every", help="layers from one stage to the next (with --keep)")]
ProtectFirstOption = Annotated[int, typer.Option(help="tokens at the beginning that are never dropped")]
ProtectLastOption = Annotated[
    float, typer.Option(help="share of the prompt at its end that is never dropped")
]
