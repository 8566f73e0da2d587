"""Pruned runners from what is typed: selectors, scorers, schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.errors import ConfigError

if TYPE_CHECKING:
    from twinrun.models.model import Model
    from twinrun.prune.schedule import Schedule

NONE = "none"
"""The side whose prompts stay whole."""
LEARNED, ORACLE = "learned", "oracle"

ScorerOption = Annotated[
    str | None, typer.Option("--scorer", help="folder of trained scorers, or builtin:NAME")
]
ScheduleOption = Annotated[
    str | None,
    typer.Option("--schedule", help="layer:share pairs, 4:0.7,7:0.5,10:0.35; a whole number is tokens"),
]
FirstOption = Annotated[int, typer.Option("--first", help="first layer that prunes, from 0 (with --keep)")]
EveryOption = Annotated[int, typer.Option("--every", help="layers from one stage to the next (with --keep)")]
ProtectFirstOption = Annotated[int, typer.Option(help="tokens at the beginning that are never dropped")]
ProtectLastOption = Annotated[
    float, typer.Option(help="share of the prompt at its end that is never dropped")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """What no selector may drop."""

    first: int
    last: float


def parse_schedule(text: str) -> dict[int, float | int]:
    """Read `layer:keep` pairs.

    Raises:
        ConfigError: anything else, or a layer twice.

    Example:
        >>> parse_schedule("4:0.9,7:400")
        {4: 0.9, 7: 400}
    """
    found: dict[int, float | int] = {}
    for part in text.split(","):
        layer, _, keep = part.partition(":")
        try:
            at, value = int(layer), (int(keep) if keep.strip().isdigit() else float(keep))
        except ValueError as error:
            raise ConfigError(f"{part!r} is no layer:keep pair; write --schedule 4:0.9,7:0.81") from error
        if at in found:
            raise ConfigError(f"layer {at} is given twice in --schedule; give each layer once")
        found[at] = value
    return found


def schedule_of(model: Model, ratio: float | None, text: str | None, first: int, every: int) -> Schedule:
    """The schedule that --schedule or --keep, --first and --every ask for.

    Raises:
        ConfigError: both, or stages that the model does not have.
    """
    from twinrun.prune.schedule import Schedule

    if text is not None and ratio is not None:
        raise ConfigError("--schedule and --keep both say how much is kept; give one of them")
    depth = len(model.layout.layers)
    if text is not None:
        schedule = Schedule.of(parse_schedule(text))
    else:
        schedule = Schedule.geometric(depth, ratio=0.9 if ratio is None else ratio, first=first, every=every)
    schedule.check(depth)
    return schedule


def stages_json(schedule: Schedule) -> dict[str, float | int]:
    """A schedule as JSON types, for a request."""
    return {str(stage.layer): stage.keep for stage in schedule.stages}


def pruned_side(
    model: Model, selector: str, scorer: str | None, schedule: Schedule, protect: Protect, seed: int
) -> Any:
    """Build one side; `learned` takes the scorer.

    Raises:
        ConfigError: learned without a scorer, or whatever `tr.Pruned` refuses.
    """
    from twinrun.prune.pruned import Pruned

    settings = {
        "schedule": schedule,
        "protect_first": protect.first,
        "protect_last": protect.last,
        "seed": seed,
    }
    if selector == LEARNED:
        if scorer is None:
            raise ConfigError("--selector learned needs trained scorers; give --scorer DIR, or builtin:long")
        from twinrun.prune.scorer import Scorer

        return Pruned(model, Scorer.load(scorer, model), **settings)
    if selector == ORACLE:
        from twinrun.quality.oracle import AnswerSaliency

        return Pruned(model, selector=AnswerSaliency(model, schedule.layers), **settings)
    return Pruned(model, selector=selector, **settings)
