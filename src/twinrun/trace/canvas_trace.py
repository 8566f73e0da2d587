"""A trace of two diffusion runs: both sides, what is wrong in each, the place where they part, and the same on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twinrun.errors import TraceError
from twinrun.trace.canvas_checks import Finding, findings
from twinrun.trace.canvas_divergence import CanvasDivergence, first_canvas_divergence
from twinrun.trace.canvas_side import CanvasSide
from twinrun.trace.canvas_step import CanvasStep
from twinrun.trace.cosines import cosine_distribution
from twinrun.trace.meta import META, SIDES, read_meta, read_side, refuse_other_model, write_trace
from twinrun.trace.recorder import Level

CANVAS_SCHEMA = "twinrun.canvas-trace/1"


def _no_side() -> CanvasSide:
    return CanvasSide(who="reference", runner="", dtype="", identity={}, prompt=[], mask_id=0, gen_length=0)


@dataclass(slots=True, kw_only=True)
class CanvasTrace:
    """What `twinrun.trace` recorded of two diffusion runs.

    Attributes:
        level: "steps", "fingerprints" (with cosines of every layer) or "states" (with what replays need).
        complete: False for a recording that was killed.
        reference, candidate: the two runs.
        first_divergence: where they part first; None if they agree to the end.
        findings: what is wrong in itself, in either side, in the order of steps; the first one explains the rest.
        noise: largest rounding error of the reference's probabilities, where it was measured.
        pieces: text of every token id that occurs.
        runners: the live runners, for `replay`; empty in a trace read from disk.
    """

    model: str
    dtype: str
    level: Level
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict, repr=False)
    complete: bool = False
    seconds: float = 0.0
    reference: CanvasSide = field(default_factory=_no_side)
    candidate: CanvasSide = field(default_factory=_no_side)
    first_divergence: CanvasDivergence | None = None
    findings: list[Finding] = field(default_factory=list)
    noise: float | None = None
    pieces: dict[int, str] = field(default_factory=dict, repr=False)
    runners: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def sides(self) -> tuple[CanvasSide, CanvasSide]:
        """Reference and candidate."""
        return self.reference, self.candidate

    @property
    def blame(self) -> Finding | None:
        """The first thing that is wrong in itself, the candidate's before the reference's; None if nothing is."""
        both = sorted(self.findings, key=lambda finding: (finding.side == "reference", finding.step))
        return both[0] if both else None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong in itself and the runs part, if at all, at a tie or by design."""
        told = self.first_divergence
        return not self.findings and (told is None or told.kind == "tie flip" or told.by_design)

    def __str__(self) -> str:
        """What is wrong, else where the two runs part."""
        if self.blame is not None:
            return f"{self.blame.where}: {self.blame.sentence}"
        if self.first_divergence is not None:
            return f"{self.first_divergence.kind}: {self.first_divergence.sentence}"
        return f"no divergence over {len(self.reference.steps)} steps"

    def check(self) -> None:
        """Fill in findings and the first divergence from what was recorded."""
        self.findings = [finding for side in self.sides for finding in findings(side)]
        self.first_divergence = first_canvas_divergence(self.reference, self.candidate, self.noise)

    def cosines(self) -> dict[str, Any]:
        """Side -> distribution of 1 - cosine of kept and of skipped tokens; None for a side without a skip."""
        return {side.who: cosine_distribution(side.steps) for side in self.sides}

    def skipped(self) -> dict[str, Any]:
        """Side -> what it skipped, in all and a step."""
        return {side.who: side.skip_totals() for side in self.sides}

    def replay(
        self,
        step: int,
        *,
        side: Literal["reference", "candidate"] = "candidate",
        runner: Any = None,
        **settings: Any,
    ) -> Any:
        """Run a recorded step again from its saved state, as it was and with other settings, and compare the two.

        Args:
            step: number of the forward.
            side: whose step.
            runner: a runner of the same model; needed for a trace read from disk.
            **settings: fields of `DiffusionSettings` to change, `skip=None` for one.

        Returns:
            A `twinrun.diffusion.replay.Replay`: KL, top tokens, and commit set of both.

        Raises:
            TraceError: no such step, no state was kept (record with `level="states"`; a full forward needs none), no
                runner, or one of another model.

        Cost: two forwards.
        """
        record = self.reference if side == "reference" else self.candidate
        live = runner if runner is not None else self.runners.get(side)
        if live is None:
            raise TraceError(
                "a trace read from disk has no model; give replay(..., runner=tr.Diffusion(model, ...))"
            )
        if not 0 <= step < len(record.steps):
            raise TraceError(f"no step {step}; the {side} has steps 0 to {len(record.steps) - 1}")
        return live.replay(state_of(record, step), record.steps[step].commits, **settings)

    def about(self) -> dict[str, Any]:
        """Everything but the steps, as plain JSON types."""
        told, names = (
            self.first_divergence,
            ("model", "dtype", "level", "settings", "env", "seconds", "noise"),
        )
        return {
            **{name: getattr(self, name) for name in names},
            "sides": {side.who: side.about() for side in self.sides if side.runner},
            "divergence": None if told is None else told.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
            "passed": self.passed,
            "skipped": self.skipped(),
            "cosines": self.cosines(),
            "pieces": {str(k): v for k, v in self.pieces.items()},
        }

    def save(self, folder: str | Path) -> Path:
        """Write the trace to an empty folder: `trace.json`, and each side's steps as Parquet and safetensors.

        Raises:
            ConfigError: the folder cannot be written to or holds a trace already.
        """
        return write_trace(
            folder, self.sides, {**self.about(), "schema": CANVAS_SCHEMA, "complete": self.complete}
        )

    @classmethod
    def open(cls, folder: str | Path) -> CanvasTrace:
        """Read a trace; of a recording that was killed, everything up to the last full step.

        Raises:
            TraceError: no trace, or one that was truncated or changed.
        """
        place = Path(folder)
        meta = read_meta(place, CANVAS_SCHEMA)
        names = ("model", "dtype", "level", "settings", "env", "seconds", "noise", "complete")
        try:
            found = cls(
                **{name: meta[name] for name in names},
                pieces={int(k): v for k, v in meta["pieces"].items()},
                first_divergence=None
                if meta["divergence"] is None
                else CanvasDivergence(**meta["divergence"]),
                findings=[Finding(**finding) for finding in meta["findings"]],
            )
            for who in SIDES:
                side = read_side(place, who, meta, CanvasSide, CanvasStep.from_json)
                if side is not None:
                    setattr(found, who, side)
        except (KeyError, TypeError, AttributeError) as error:
            raise TraceError(f"{place / META} lacks {error}; record the trace again") from error
        if not found.complete:
            found.check()
        return found

    def against(self, other: CanvasTrace) -> CanvasDivergence | None:
        """Compare this trace's candidate with another trace's candidate, from what was recorded.

        Raises:
            TraceError: the traces are of different models; says what differs.
        """
        refuse_other_model(self.candidate, other.candidate)
        return first_canvas_divergence(self.candidate, other.candidate, self.noise)


def state_of(side: CanvasSide, step: int) -> Any:
    """The saved state of a step; a full forward starts from the canvas alone, which the record has.

    Raises:
        TraceError: it was not kept.
    """
    found = side.steps[step]
    if found.state is not None:
        return found.state
    if not found.full:
        full = next(s.step for s in reversed(side.steps[: step + 1]) if s.full)
        raise TraceError(
            f"step {step} was recorded without its state; record with level='states', or replay the full "
            f"forward of its block, step {full}"
        )
    ids = next(list(canvas) for i, canvas in enumerate(side.canvases()) if i == step)
    open_now = {p for s in side.steps[step:] for p, o in zip(s.positions, s.open, strict=True) if o}
    return {
        "ids": ids,
        "start": len(side.prompt),
        "open": [p in open_now for p in range(side.width)],
        "block": [found.positions[0], found.positions[-1] + 1],
        "block_step": found.block_step,
    }
