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
from twinrun.runners.runner import ModelRunner, ModelScorer
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
CANVAS: dict[str, tuple[str, bool, str]] = {
    "diffusion": ("masked diffusion: a full forward in every step (the reference)", True, ""),
    "diffusion:prefix": (
        "masked diffusion: what is before the block is reused",
        False,
        "keys and values grow old inside a block: add +refresh_every=2",
    ),
    "diffusion:dual": (
        "masked diffusion: what is before and behind the block is reused",
        False,
        "keys and values grow old inside a block: add +refresh_every=2",
    ),
}
"""Runners of masked-diffusion models: summary, exact, limits. More settings follow behind plus signs; they take
`score` but generate by `twinrun diffuse`."""
PRUNED: dict[str, tuple[str, bool, str]] = {
    "pruned": (
        "prompt tokens dropped layer by layer in the prefill, by trained scorers (SDTP)",
        False,
        "lossy: give verify a budget; settings behind plus signs, +scorer=FOLDER+ratio=0.8",
    ),
    **{
        f"pruned:{name}": (f"the same, tokens chosen {how}", False, "lossy: give verify a budget")
        for name, how in (
            ("attention", "by the last token's attention (LazyLLM, FastV)"),
            ("norm", "by the size of hidden states"),
            ("recency", "as the newest, beside the first (StreamingLLM)"),
            ("random", "by chance"),
        )
    },
}
"""Runners that prune the prompt: summary, exact, limits. More settings follow behind plus signs (`docs/prune.md`)."""
ALIASES = {"kv-cache": "kv-cache:dynamic"}


def build_runner(name: str, model: Model) -> ModelRunner:
    """Build the causal runner called `name` on a model.

    Raises:
        ConfigError: no such runner; names near ones and the command that lists them.
    """
    full = refuse_unknown(name)
    if is_pruned(full):
        from twinrun.prune.named import pruned_named  # late: pruning is built on runners

        return pruned_named(full, model)
    return {**RUNNERS, **FAST}[full].build(model)


def refuse_unknown(name: str) -> str:
    """Refuse what is no causal runner, before any weights are read; return its full name.

    Raises:
        ConfigError: no such runner; names near ones and the command that lists them.
    """
    full = ALIASES.get(name, name)
    refuse_canvas(full)
    known = [*RUNNERS, *FAST]
    if full not in known and not is_pruned(full):
        raise ConfigError(
            f"no runner named {name!r}.{near_names(name, [*known, *PRUNED])} `twinrun runners` lists all "
            f"{len(known) + len(CANVAS) + len(PRUNED)}"
        )
    return full


def build_scorer(name: str, model: Model) -> ModelScorer:
    """Build the runner called `name`, causal or of masked diffusion: all that `verify` can judge.

    Raises:
        ConfigError: no such runner, or a setting behind `diffusion:` that there is not.
    """
    if not is_canvas(name):
        return build_runner(name, model)
    from twinrun.diffusion.named import diffusion_named  # late: diffusion is built on runners

    return diffusion_named(name, model)


def refuse_canvas(name: str) -> None:
    """Refuse a masked-diffusion runner where tokens are written one by one.

    Raises:
        ConfigError: it is one.
    """
    if is_canvas(name):
        raise ConfigError(
            f"runner {name!r} fills in a canvas of masks, no token by token; use `twinrun diffuse` or "
            "`twinrun verify`, or a causal runner such as kv-cache"
        )


def is_pruned(name: str) -> bool:
    """Whether a name is that of a runner that prunes the prompt, settings included."""
    return name.partition("+")[0].partition(":")[0] == "pruned"


def is_canvas(name: str) -> bool:
    """Whether a name is that of a masked-diffusion runner."""
    return name.partition(":")[0] == "diffusion"
