"""Runners by the names that the command line and records use. Factories, never shared instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model
from twinrun.runners.caches import CACHES
from twinrun.runners.kvcache import KVCache
from twinrun.runners.recompute import Recompute
from twinrun.runners.runner import ModelRunner
from twinrun.runners.singlepass import SinglePass
from twinrun.runners.steps import SLOTTED, STEP_SUMMARIES


@dataclass(frozen=True, slots=True)
class RunnerKind:
    """A runner that can be asked for by name. `limits` is what it costs or cannot do, empty if nothing."""

    build: Callable[[Model], ModelRunner]
    summary: str
    exact: bool
    limits: str = ""


RUNNERS: dict[str, RunnerKind] = {
    "recompute": RunnerKind(
        Recompute, "one forward over the whole prefix for every token (the reference)", True
    ),
    **{
        f"kv-cache:{name}": RunnerKind(partial(KVCache, cache=name), kind.summary, kind.is_exact, kind.limits)
        for name, kind in CACHES.items()
    },
    "single-pass": RunnerKind(SinglePass, "one forward for prompt and continuation (scoring)", True),
}
FAST: dict[str, RunnerKind] = {
    f"kv-cache:{cache}+{step}": RunnerKind(
        partial(KVCache, cache=cache, step=step), f"{CACHES[cache].summary}; {summary}", True, limits
    )
    for cache in SLOTTED
    for step, (summary, limits) in STEP_SUMMARIES.items()
}
"""Fast steps by name: a cache with slots, a plus sign, the step."""
ALIASES = {"kv-cache": "kv-cache:dynamic"}


def build_runner(name: str, model: Model) -> ModelRunner:
    """Build the runner called `name` on a model.

    Raises:
        ConfigError: no such runner; names near ones and the command that lists them.
    """
    full = ALIASES.get(name, name)
    known = {**RUNNERS, **FAST}
    if full not in known:
        raise ConfigError(
            f"no runner named {name!r}.{near_names(name, known)} `twinrun runners` lists all {len(known)}"
        )
    return known[full].build(model)
