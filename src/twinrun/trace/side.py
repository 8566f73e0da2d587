"""One side of a trace: which runner, what it was given, and its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from twinrun.trace.step import Scored, TracedStep


@dataclass(slots=True, kw_only=True)
class Side:
    """One recorded run.

    Attributes:
        who: "reference" or "candidate".
        runner, dtype: how it ran.
        identity: class, parameters and a hash of the model; see `twinrun.trace.identity`.
        prompt: token ids.
        tokens: what followed the prompt: chosen in a free run, given in a forced one.
        finish: "eos", "length", "stopped", "forced"; None if it was killed.
        seconds: of the whole run.
        prune: what a pruned prefill did (`Prefill.to_json`); None where nothing is pruned.
        steps: forwards, in order.
    """

    who: Literal["reference", "candidate"]
    runner: str
    dtype: str
    identity: dict[str, Any]
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    text: str | None = None
    finish: str | None = None
    seconds: float = 0.0
    prune: dict[str, Any] | None = None
    steps: list[TracedStep] = field(default_factory=list, repr=False)

    def by_position(self) -> dict[int, tuple[TracedStep, Scored]]:
        """Scored position -> the step that scored it, and what it said; ascending."""
        found = {row.position: (step, row) for step in self.steps for row in step.rows}
        return dict(sorted(found.items()))

    def about(self) -> dict[str, Any]:
        """Everything but the steps, as plain JSON types."""
        names = ("who", "runner", "dtype", "identity", "prompt", "tokens", "text", "finish", "seconds")
        pruned = {} if self.prune is None else {"prune": self.prune}
        return {**{name: getattr(self, name) for name in names}, **pruned}

    def due(self, step: TracedStep) -> list[int]:
        """Tokens that each layer of the cache should hold behind a step: all so far, less what a schedule dropped."""
        dropped = (self.prune or {}).get("dropped_slots") or [0] * len(step.cache)
        return [step.last + 1 - n for n in dropped]
