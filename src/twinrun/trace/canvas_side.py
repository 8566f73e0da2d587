"""One side of a traced diffusion run: which runner, what it was given, its steps, and what it skipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from twinrun.trace.canvas_step import CanvasStep

ABOUT = (
    "who", "runner", "dtype", "identity", "prompt", "mask_id", "gen_length", "settings", "tokens", "canvas",
    "text", "finish", "seconds",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class CanvasSide:
    """One recorded diffusion run of one prompt.

    Attributes:
        who: "reference" or "candidate".
        runner, dtype: how it ran.
        identity: class, parameters and a hash of the model.
        prompt: token ids.
        mask_id: id that stands for what is not decided.
        gen_length: masks behind the prompt.
        settings: of the runner: block length, commit rule, cache, skip.
        tokens: what was written, up to the end of the text; canvas: the whole generation area.
        finish: "eos", "length", "stopped"; None if it was killed.
        seconds: of the whole run.
        steps: forwards, in order.
    """

    who: Literal["reference", "candidate"]
    runner: str
    dtype: str
    identity: dict[str, Any]
    prompt: list[int]
    mask_id: int
    gen_length: int
    settings: dict[str, Any] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    canvas: list[int] = field(default_factory=list)
    text: str | None = None
    finish: str | None = None
    seconds: float = 0.0
    steps: list[CanvasStep] = field(default_factory=list, repr=False)

    @property
    def width(self) -> int:
        """Positions of the canvas."""
        return len(self.prompt) + self.gen_length

    @property
    def approximates(self) -> bool:
        """Whether the runner reuses what a changed canvas would change, or leaves masks out: not exact by design."""
        settings = self.settings
        return settings.get("cache", "none") != "none" or settings.get("suffix_window") is not None

    def canvases(self) -> Iterator[list[int]]:
        """Tokens of the whole canvas in front of each step, and behind the last; rebuilt from what was committed.

        Each is the same list, written on: copy what is to be kept.
        """
        ids = [*self.prompt, *[self.mask_id] * self.gen_length]
        for step in self.steps:
            yield ids
            for position, token in step.commits.items():
                ids[position] = token
            for position, _before, after in step.strays:
                ids[position] = after
        yield ids

    def skip_totals(self) -> dict[str, Any]:
        """Tokens and token-layers that were skipped, in all and a step; zeros without a skip policy."""
        seen = [step.skips for step in self.steps if step.skips is not None]
        tokens = sum(len(skips.active) for skips in seen)
        skipped = sum(skips.active.count(False) for skips in seen)
        layers = sum(skips.token_layers for skips in seen)
        left_out = sum(skips.skipped_token_layers for skips in seen)
        return {
            "steps": len(seen),
            "tokens": tokens,
            "skipped_tokens": skipped,
            "skipped_share": skipped / tokens if tokens else 0.0,
            "skipped_layers_share": left_out / layers if layers else 0.0,
            "by_step": [[step.step, len(step.skipped)] for step in self.steps],
        }

    def about(self) -> dict[str, Any]:
        """Everything but the steps, as plain JSON types."""
        return {name: getattr(self, name) for name in ABOUT}
