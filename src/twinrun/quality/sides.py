"""Sides of a comparison from names: selectors, scorers, schedules, any runner. What commands and engines share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.prune.pruned import Pruned
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import Scorer
from twinrun.quality.oracle import AnswerSaliency
from twinrun.runners.registry import build_runner
from twinrun.runners.runner import ModelRunner

NONE, LEARNED, ORACLE, PRUNED = "none", "learned", "oracle", "pruned"


def parse_schedule(text: str) -> dict[int, float | int]:
    """Read `layer:keep` pairs, separated by commas, or by slashes where commas mean something else.

    Raises:
        ConfigError: anything else, or a layer twice.

    Example:
        >>> parse_schedule("4:0.9,7:400") == parse_schedule("4:0.9/7:400") == {4: 0.9, 7: 400}
        True
    """
    found: dict[int, float | int] = {}
    for part in text.replace("/", ",").split(","):
        layer, _, keep = part.partition(":")
        try:
            at, value = int(layer), (int(keep) if keep.strip().isdigit() else float(keep))
        except ValueError as error:
            raise ConfigError(f"{part!r} is no layer:keep pair; write 4:0.9,7:0.81") from error
        if at in found:
            raise ConfigError(f"layer {at} is given twice in the schedule; give each layer once")
        found[at] = value
    return found


FIRST, EVERY = 4, 3
"""Layers of the paper's schedule."""


def schedule_of(
    model: Model,
    ratio: float | None,
    text: str | None,
    first: int = FIRST,
    every: int = EVERY,
    scorer: str | None = None,
) -> Schedule:
    """The schedule that is spelled out in `text`, or the paper's with `ratio` (None: 0.9).

    Where neither these nor other layers are given, scorers are used with the schedule that they were trained for.

    Raises:
        ConfigError: both are given, or stages that the model does not have.
        CheckpointError: `scorer` is no folder of scorers.
    """
    if text is not None and ratio is not None:
        raise ConfigError("a schedule and a keep ratio both say how much is kept; give one of them")
    depth = len(model.layout.layers)
    is_open = text is None and ratio is None and (first, every) == (FIRST, EVERY)
    own = Scorer.load(scorer).schedule if scorer is not None and is_open else None
    if text is not None:
        schedule = Schedule.of(parse_schedule(text))
    elif own is not None:
        schedule = Schedule.of(own)
    else:
        schedule = Schedule.geometric(depth, ratio=0.9 if ratio is None else ratio, first=first, every=every)
    schedule.check(depth)
    return schedule


def pruned_side(
    model: Model, selector: str, schedule: Schedule, scorer: str | None = None, **settings: Any
) -> Pruned:
    """Build a pruning runner.

    Args:
        model: what `twinrun.load` returns.
        selector: "learned" (takes `scorer`), "oracle" (for evaluations, which know the answers), or what `Pruned`
            takes.
        schedule: how much is kept where.
        scorer: folder of trained scorers, or builtin:NAME.
        **settings: protect_first, protect_last, seed.

    Raises:
        ConfigError: learned without a scorer, a scorer without learned, or whatever `Pruned` refuses.
    """
    if (selector == LEARNED) != (scorer is not None):
        raise ConfigError(
            "the selector 'learned' needs trained scorers; give their folder, or builtin:NAME (--scorer DIR)"
            if scorer is None
            else f"a scorer is given and the selector is {selector!r}; give selector 'learned', or no scorer"
        )
    if scorer is not None:
        return Pruned(model, Scorer.load(scorer, model), schedule=schedule, **settings)
    if selector == ORACLE:
        return Pruned(model, selector=AnswerSaliency(model, schedule.layers), schedule=schedule, **settings)
    return Pruned(model, selector=selector, schedule=schedule, **settings)


def stages_json(schedule: Schedule) -> dict[str, float | int]:
    """A schedule as JSON types, for a request."""
    return {str(stage.layer): stage.keep for stage in schedule.stages}


def runner_named(model: Model, name: str, options: Mapping[str, Any]) -> ModelRunner:
    """Build any causal runner by name; "pruned" takes selector, scorer, schedule, keep, first, every, `Pruned`'s own.

    Raises:
        ConfigError: an unknown name, or options of a runner that has none.
    """
    given = dict(options)
    if name != PRUNED:
        if given:
            raise ConfigError(
                f"{', '.join(given)}: only the runner 'pruned' takes these, and this is {name!r}"
            )
        return build_runner(name, model)
    scorer = given.pop("scorer", None)
    selector = given.pop("selector", LEARNED if scorer is not None else None)
    if selector is None:
        raise ConfigError(
            "the runner 'pruned' needs a scorer, or a selector such as random, recency or attention"
        )
    text, ratio = given.pop("schedule", None), given.pop("keep", None)
    schedule = schedule_of(
        model,
        None if ratio is None else float(ratio),
        None if text is None else str(text),
        int(given.pop("first", FIRST)),
        int(given.pop("every", EVERY)),
        scorer,
    )
    return pruned_side(model, str(selector), schedule, scorer, **given)
