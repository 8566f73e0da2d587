"""Selectors by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model
from twinrun.prune.selector import Selector
from twinrun.prune.selectors.attention import LastAttention
from twinrun.prune.selectors.learned import Learned
from twinrun.prune.selectors.norm import Norm
from twinrun.prune.selectors.press import KEYS, Press
from twinrun.prune.selectors.random import Random
from twinrun.prune.selectors.recency import Recency


@dataclass(frozen=True, slots=True)
class SelectorKind:
    """A selector that needs nothing but the model and a seed."""

    build: Callable[[Model, int], Selector]
    summary: str


SELECTORS: dict[str, SelectorKind] = {
    "random": SelectorKind(lambda _m, seed: Random(seed), "by chance, seeded"),
    "recency": SelectorKind(
        lambda _m, _s: Recency(), "the newest tokens (a sink and a tail, as StreamingLLM)"
    ),
    "norm": SelectorKind(lambda _m, _s: Norm(), "size of the hidden state"),
    "attention": SelectorKind(lambda m, _s: LastAttention(m), "attention of the last token (LazyLLM, FastV)"),
}
"""Names that `tr.Pruned(selector=...)` takes, beside `press:NAME` of the kvpress package and objects with `score`."""


def build_selector(given: str | Selector | None, scorer: Any, model: Model, seed: int) -> Selector:
    """Return the selector that a scorer, a name or an object stands for.

    Raises:
        ConfigError: both or neither are given, an unknown name, or an object without `score`.
        MissingBackendError: `press:NAME` without the kvpress package.
    """
    if (given is None) == (scorer is None):
        what = "neither a scorer nor a selector was" if given is None else "a scorer and a selector were"
        raise ConfigError(
            f"{what} given; give a trained scorer, or selector={' | '.join(map(repr, SELECTORS))} or one of your own"
        )
    if scorer is not None:
        return Learned(scorer)
    if isinstance(given, str):
        if given.startswith(KEYS):
            return Press.named(given.removeprefix(KEYS), model)
        if given not in SELECTORS:
            raise ConfigError(
                f"no selector {given!r}; choose from {', '.join(SELECTORS)} or {KEYS}NAME."
                f"{near_names(given, SELECTORS)}"
            )
        return SELECTORS[given].build(model, seed)
    if not callable(getattr(given, "score", None)):
        raise ConfigError(
            f"selector is a {type(given).__name__} without score(seen); give a name or an object that has it"
        )
    return given  # type: ignore[return-value]  # checked just now, and not None
