"""One free run with a forced length, and the time of every token in it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from twinrun.bench.timing import wait_for_cuda
from twinrun.errors import ConfigError
from twinrun.records.run import Step
from twinrun.runners.runner import ModelRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One run. The clock was read at the call, whenever a token was there, and at the end; seconds."""

    began: float
    stamps: tuple[float, ...]
    ended: float
    tokens: tuple[int | None, ...]
    lengths_prefill: tuple[int, ...]
    lengths_end: tuple[int, ...]
    reused_tokens: int
    """Tokens of the prompt that the runner says it had in a kept cache."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the runner's own record says about the run."""

    @property
    def prefill_seconds(self) -> float:
        """From the call to the first token: the prompt's forward, the last row of logits, one choice."""
        return self.stamps[0] - self.began

    @property
    def token_seconds(self) -> list[float]:
        """Time of each token after the first."""
        return [b - a for a, b in pairwise(self.stamps)]

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self.stamps[-1] - self.stamps[0]

    @property
    def total_seconds(self) -> float:
        """From the call to its return."""
        return self.ended - self.began


def run_forced(
    runner: Any,
    ids: Sequence[int],
    new_tokens: int,
    *,
    stop_after: int | None = None,
    on_step: Callable[[Step], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Passage:
    """Let a runner write `new_tokens` tokens, end-of-text tokens ignored, and read the clock at each.

    Args:
        runner: anything with `generate(prompt, max_new_tokens, observe)` that observes every token.
        ids: the prompt.
        new_tokens: tokens the run is set up for.
        stop_after: end the run after that many tokens all the same; for runs that are not timed.
        on_step: called at every token, before the clock is read.
        clock: returns seconds.

    Raises:
        ConfigError: the runner observed no step, or stopped by itself.
    """
    stamps: list[float] = []
    steps: list[Step] = []
    limit = new_tokens if stop_after is None else min(stop_after, new_tokens)

    def observe(step: Step) -> bool:
        wait_for_cuda()
        if on_step is not None:
            on_step(step)
        stamps.append(clock())
        steps.append(step)
        return len(stamps) == limit < new_tokens

    forced = {"stop_at_eos": False} if _can_be_forced(runner) else {}
    wait_for_cuda()
    began = clock()
    run = runner.generate(list(ids), new_tokens, observe, **forced)
    wait_for_cuda()
    ended = clock()
    _check(runner, len(stamps), limit)
    return Passage(
        began=began,
        stamps=tuple(stamps),
        ended=ended,
        tokens=tuple(step.tokens[0] for step in steps),
        lengths_prefill=tuple(steps[0].cache_lengths),
        lengths_end=tuple(steps[-1].cache_lengths),
        reused_tokens=sum(getattr(runner, "reused_tokens", ())),
        settings=dict(getattr(run, "settings", {})),
    )


def _can_be_forced(runner: Any) -> bool:
    """Whether `generate` can be told to go on behind an end-of-text token; an engine says so by its signature."""
    if isinstance(runner, ModelRunner):
        return True
    try:
        return "stop_at_eos" in inspect.signature(runner.generate).parameters
    except (TypeError, ValueError):
        return False


def _check(runner: Any, seen: int, wanted: int) -> None:
    name = type(runner).__name__
    if seen == 0:
        raise ConfigError(f"{name}.generate observed no step; let it call observe(step) after every token")
    if seen < wanted:
        raise ConfigError(
            f"{name}.generate stopped after {seen} of {wanted} tokens, so its time cannot be compared; "
            "give it a stop_at_eos parameter"
        )
