"""Pruned runners and their settings in words, as the command line and records write them.

A runner is `pruned`, or `pruned:SELECTOR`, and settings behind plus signs as NAME=VALUE, for example

    pruned:recency+ratio=0.8
    pruned:norm+schedule=4:0.9,7:0.5+protect_first=8
    pruned+scorer=runs/scorer

Without a selector the scorers decide: those named, else those that come with a built-in model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model
from twinrun.prune.pruned import Pruned
from twinrun.prune.schedule import Schedule
from twinrun.prune.scorer import shipped_scorer

KIND = "pruned"
SHAPE = ("ratio", "first", "every")
"""Settings of `Schedule.geometric`; they and `schedule` exclude each other."""


def pruned_named(name: str, model: Model) -> Pruned:
    """Build the runner called `name` on a model.

    Raises:
        ConfigError: a word that is no setting, one named twice, or a value that it cannot have.
        UnsupportedModelError: a model that cannot be pruned.

    Example:
        >>> pruned_named("pruned:recency+schedule=1:0.5", load("builtin:amateur")).name
        'pruned:recency+ratio=0.5+first=1+every=3'
    """
    words = _words(name)
    selector = words.pop("selector", None)
    selector = None if selector == "learned" else selector
    given: dict[str, Any] = {key: READERS[key](text) for key, text in words.items()}
    shape = {key: given.pop(key) for key in SHAPE if key in given}
    if shape and "schedule" in given:
        raise ConfigError(f"{name!r} gives a schedule and {', '.join(shape)}; give one or the other")
    if shape:
        given["schedule"] = Schedule.geometric(len(model.layout.layers), **shape)
    shipped = shipped_scorer(model)
    if selector is None and "scorer" not in given and shipped is not None:
        given["scorer"] = shipped
    return Pruned(model, given.pop("scorer", None), selector=selector, **given)


def _words(name: str) -> dict[str, str]:
    """Settings of a name, each once."""
    head, *rest = name.split("+")
    selector = head.removeprefix(KIND).removeprefix(":")
    words = {"selector": selector} if selector else {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or key not in READERS:
            raise ConfigError(
                f"{part!r} is no setting of a pruned runner; it has {', '.join(f'{k}=' for k in READERS)}."
                f"{near_names(key, READERS)}"
            )
        if key in words:
            raise ConfigError(f"{part!r} in {name!r} sets {key} a second time; give it once")
        words[key] = value
    return words


def schedule_of(text: str) -> Schedule:
    """Read a schedule such as "4:0.9,7:0.81" (shares) or "4:512,7:256" (tokens).

    Raises:
        ConfigError: it cannot be read, or is no schedule.

    Example:
        >>> schedule_of("4:0.9,7:256").stages[1].keep
        256
    """
    stages: dict[int, float | int] = {}
    for part in text.split(","):
        layer, colon, keep = part.partition(":")
        try:
            stages[int(layer)] = float(keep) if "." in keep or "e" in keep else int(keep)
        except ValueError:
            colon = ""
        if not colon:
            raise ConfigError(f"{part!r} in schedule {text!r} is not LAYER:KEEP; write 4:0.9,7:0.81 or 4:512")
    return Schedule.of(stages)


def _whole(name: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{name} {text!r} is no whole number; give one, such as 4") from None

    return read


def _number(name: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{name} {text!r} is no number; give one, such as 0.9") from None

    return read


def _share_or_tokens(text: str) -> float | int:
    return _number("protect_last")(text) if "." in text or "e" in text else _whole("protect_last")(text)


READERS: dict[str, Callable[[str], Any]] = {
    "ratio": _number("ratio"),
    "first": _whole("first"),
    "every": _whole("every"),
    "schedule": schedule_of,
    "protect_first": _whole("protect_first"),
    "protect_last": _share_or_tokens,
    "seed": _whole("seed"),
    "scorer": str,
}
"""Settings by name, and how each is read."""
