"""A trace: both sides' runs, the place where they part, and the same on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from twinrun.errors import TraceError
from twinrun.trace.divergence import Divergence, first_divergence
from twinrun.trace.meta import META, SIDES, read_meta, read_side, refuse_other_model, write_trace
from twinrun.trace.recorder import Level
from twinrun.trace.side import Side
from twinrun.trace.step import TracedStep
from twinrun.verify.culprit import Blame
from twinrun.verify.verdict import Verdict

SCHEMA = "twinrun.trace/1"


def _no_side() -> Side:
    return Side(who="reference", runner="", dtype="", identity={}, prompt=[])


@dataclass(slots=True, kw_only=True)
class Trace:
    """What `twinrun.trace` recorded.

    Attributes:
        mode: "free" (each side chose its own tokens) or "forced" (both scored one text).
        level: what was kept of hidden states.
        complete: False for a recording that was killed.
        reference, candidate: the two runs.
        first_divergence: where they part first; None if they agree to the end.
        verdict: of the text that both share, teacher-forced; a plain record when read from disk.
        blame: the module, where the verdict is "different"; a plain record when read from disk.
        curves: relative difference and cosine of hidden states by position and layer, with the noise of each layer.
        pieces: text of every token id that occurs.
    """

    model: str
    dtype: str
    mode: Literal["free", "forced"]
    level: Level
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict, repr=False)
    complete: bool = False
    seconds: float = 0.0
    reference: Side = field(default_factory=_no_side)
    candidate: Side = field(default_factory=_no_side)
    first_divergence: Divergence | None = None
    verdict: Verdict | dict[str, Any] | None = field(default=None, repr=False)
    blame: Blame | dict[str, Any] | None = None
    curves: dict[str, Any] | None = field(default=None, repr=False)
    pieces: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Reference and candidate."""
        return self.reference, self.candidate

    def __str__(self) -> str:
        """Where the two runs part."""
        if self.first_divergence is not None:
            return f"{self.first_divergence.kind}: {self.first_divergence.sentence}"
        return f"no divergence over {len(self.reference.by_position())} scored positions"

    def about(self) -> dict[str, Any]:
        """Everything but the steps, as plain JSON types."""
        return {
            **{name: getattr(self, name) for name in ("model", "dtype", "mode", "level", "settings", "env")},
            "seconds": self.seconds,
            "sides": {side.who: side.about() for side in self.sides if side.runner},
            "divergence": None if self.first_divergence is None else self.first_divergence.to_json(),
            "verdict": self.verdict.to_json() if isinstance(self.verdict, Verdict) else self.verdict,
            "blame": self.blame.to_json() if isinstance(self.blame, Blame) else self.blame,
            "curves": self.curves,
            "pieces": {str(k): v for k, v in self.pieces.items()},
        }

    def save(self, folder: str | Path) -> Path:
        """Write the trace to an empty folder: `trace.json`, and each side's steps as Parquet and safetensors.

        Raises:
            ConfigError: the folder cannot be written to or holds a trace already.
        """
        return write_trace(folder, self.sides, {**self.about(), "schema": SCHEMA, "complete": self.complete})

    @classmethod
    def open(cls, folder: str | Path) -> Trace:
        """Read a trace; of a recording that was killed, everything up to the last full step.

        Raises:
            TraceError: no trace, or one that was truncated or changed.
        """
        place = Path(folder)
        meta = read_meta(place, SCHEMA)
        try:
            found = cls(
                **{name: meta[name] for name in ("model", "dtype", "mode", "level", "settings", "env")},
                complete=bool(meta["complete"]),
                seconds=meta["seconds"],
                verdict=meta["verdict"],
                blame=meta["blame"],
                curves=meta["curves"],
                pieces={int(k): v for k, v in meta["pieces"].items()},
                first_divergence=None if meta["divergence"] is None else Divergence(**meta["divergence"]),
            )
            for who in SIDES:
                side = read_side(place, who, meta, Side, TracedStep.from_json)
                if side is not None:
                    setattr(found, who, side)
        except (KeyError, TypeError, AttributeError) as error:
            raise TraceError(f"{place / META} lacks {error}; record the trace again") from error
        if not found.complete:
            _repair(found)
        return found

    def against(self, other: Trace) -> Divergence | None:
        """Compare this trace's candidate with another trace's candidate, from what was recorded.

        Raises:
            TraceError: the traces are of different models; says what differs.
        """
        ours, theirs = self.candidate, other.candidate
        refuse_other_model(ours, theirs)
        return first_divergence(ours, theirs, {}, None)


def _repair(found: Trace) -> None:
    """Tokens of a killed run, from its steps; the divergence of what there is."""
    for side in found.sides:
        rows = [row for _, row in side.by_position().values()]
        side.tokens = side.tokens or [row.token for row in rows if row.token is not None]
    if found.candidate.steps:
        found.first_divergence = first_divergence(found.reference, found.candidate, {}, None)
