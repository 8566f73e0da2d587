"""Two ways to fill in one canvas: timed in turns, and judged with teacher forcing on the plain way's own text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from twinrun.bench.timing import PairedRatio, Timing, interleave, noise, ratio
from twinrun.cli.common import moves, progress
from twinrun.diffusion.diffusion import Diffusion
from twinrun.records.diffusion_run import DiffusionRun
from twinrun.verify.budget import Budget
from twinrun.verify.case import Case
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify

OURS, THEIRS = "ours", "theirs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """Two runners on one model and what both are asked for; `steps` is for the first alone."""

    ours: Diffusion
    theirs: Diffusion
    call: dict[str, Any]
    steps: int | None = None

    @property
    def same(self) -> bool:
        """Whether the first is the second itself."""
        return self.steps is None and self.ours.settings == self.theirs.settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Runs of both settings, their times, and the verdict; `verdict` is None where both are one setting."""

    ours: DiffusionRun
    theirs: DiffusionRun
    times: dict[str, Timing]
    verdict: Verdict | None

    @property
    def passed(self) -> bool:
        """Whether the verdict allows a speed."""
        return self.verdict is None or self.verdict.passed

    @property
    def speed_up(self) -> PairedRatio:
        """Seconds a token of theirs over seconds a token of ours: ends of text are not counted as speed."""
        found = ratio(self.times[THEIRS], self.times[OURS])
        share = self.ours.new_tokens / max(1, self.theirs.new_tokens)
        return PairedRatio(
            median=found.median * share, p10=found.p10 * share, p90=found.p90 * share, pairs=found.pairs
        )

    @property
    def noise(self) -> PairedRatio:
        """Ours against itself."""
        return noise(self.times)

    @property
    def same_tokens(self) -> tuple[int, int]:
        """Tokens that agree in both free runs, place by place, and tokens of the longer of both, over all rows."""
        pairs = list(zip(self.ours.tokens, self.theirs.tokens, strict=True))
        agree = sum(a == b for x, y in pairs for a, b in zip(x, y, strict=False))
        return agree, sum(max(len(x), len(y)) for x, y in pairs)

    def rows(self) -> list[tuple[DiffusionRun, Timing]]:
        """Both runs with their times, theirs first; one of them where both are one setting."""
        ours = (self.ours, self.times[OURS])
        return [ours] if self.verdict is None else [(self.theirs, self.times[THEIRS]), ours]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; the first run stands beside it, so only the second is in here."""
        agree, total = self.same_tokens
        return {
            "verdict": {"verdict": "reference"} if self.verdict is None else _lean(self.verdict.to_json()),
            "against": None if self.verdict is None else _lean(self.theirs.to_json()),
            "times": {name: timing.to_json() for name, timing in self.times.items()},
            "speed_up": self.speed_up.to_json() if self.passed else None,
            "noise": self.noise.to_json(),
            "same_tokens": agree,
            "tokens_compared": total,
        }


def compare(twin: Twin, prompts: list[list[int]], budget: Budget, repeats: int) -> Compared:
    """Time both in turns, and judge the first on the text that the second writes."""
    runs: dict[str, DiffusionRun] = {}
    arms = {
        OURS: partial(twin.ours.generate, prompts, steps=twin.steps, **twin.call),
        THEIRS: partial(twin.theirs.generate, prompts, **twin.call),
    }
    with progress(None, "timing both in turns") as (bar, task):
        times = interleave(
            {OURS: arms[OURS]} if twin.same else arms,
            repeats=repeats,
            warmups=0,
            on_progress=lambda done, total, what: bar.update(task, completed=done, total=total),
            on_result=runs.__setitem__,
        )
    if twin.same:
        times[THEIRS], runs[THEIRS] = times[OURS], runs[OURS]
        return Compared(ours=runs[OURS], theirs=runs[THEIRS], times=times, verdict=None)
    with progress(None, "verifying") as (bar, task):
        verdict = verify(
            twin.theirs,
            twin.ours,
            [forced_case(runs[THEIRS], twin.ours.max_context)],
            budget=budget,
            explain=False,
            on_progress=moves(bar, task),
        )
    return Compared(ours=runs[OURS], theirs=runs[THEIRS], times=times, verdict=verdict)


def forced_case(run: DiffusionRun, limit: int | None) -> Case:
    """Prompts with the texts that a run wrote, as one case; a row that fills the context loses its last token."""
    rows = [[*p, *t] for p, t in zip(run.prompts, run.tokens, strict=True)]
    kept = [row if limit is None else row[: limit - 1] for row in rows]
    starts = tuple(min(len(p), len(row)) for p, row in zip(run.prompts, kept, strict=True))
    return Case(label="text", rows=tuple(map(tuple, kept)), starts=starts)


def _lean(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "env"}
