"""Find where two recorded diffusion runs part, and say of which kind the parting is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from twinrun.records.tokens import first_difference
from twinrun.trace.canvas_side import CanvasSide
from twinrun.trace.canvas_step import CanvasStep

Kind = Literal["canvas ids", "positions", "mask", "commit set", "tie flip", "numeric", "step count"]
FLOOR = 1e-6
"""Difference of two probabilities that float32 rounding may leave where no noise was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasDivergence:
    """The first step in which two diffusion runs do not do the same.

    Attributes:
        kind: "canvas ids" (not the same tokens in front of the step), "positions" (not the same rows of scores, or
            other positions handed over), "mask" (other slots attended to), "commit set" (the same probabilities, other
            commits: the schedule or the rule differs), "tie flip" (probabilities apart by rounding, and the choice
            hangs on it), "numeric" (probabilities apart by more), "step count".
        sentence: in words, with the numbers.
        step, block, block_step: of the candidate.
        position: the first position that shows it.
        error: largest difference of the two sides' probabilities over the open positions of that step.
        noise: the reference's own rounding there, measured one precision up; None if it was not.
        margin: how close the choice was: least change of a probability that would make the choices equal.
        first_error: step in which probabilities first differed by more than noise while the commits were equal still.
        by_design: True for "numeric" where the candidate reuses what a changed canvas would change.
    """

    kind: Kind
    sentence: str
    step: int | None = None
    block: int | None = None
    block_step: int | None = None
    position: int | None = None
    error: float | None = None
    noise: float | None = None
    margin: float | None = None
    first_error: int | None = None
    by_design: bool = False

    def __str__(self) -> str:
        """The sentence."""
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)


def first_canvas_divergence(
    reference: CanvasSide, candidate: CanvasSide, noise: float | None = None
) -> CanvasDivergence | None:
    """Compare two sides step by step as long as their canvases agree.

    Args:
        reference: trusted side.
        candidate: side on trial.
        noise: largest rounding error of the reference's probabilities; None takes 1e-6.

    Returns:
        None if both commit the same tokens at the same positions in the same steps, and, where neither side
        approximates, with the same probabilities up to noise.
    """
    if reference.prompt != candidate.prompt:
        at = first_difference(reference.prompt, candidate.prompt)
        a, b = (side.prompt[at] if at < len(side.prompt) else "nothing" for side in (reference, candidate))
        return CanvasDivergence(
            kind="canvas ids",
            position=at,
            sentence=f"the prompts part at token {at}: id {a} against id {b}",
        )
    first_error: CanvasStep | None = None
    for ours, theirs in zip(reference.steps, candidate.steps, strict=False):
        found = _identity(ours, theirs)
        if found is not None:
            return found
        error, where = _error(ours, theirs)
        if ours.commits != theirs.commits:
            return _parted(reference, candidate, ours, theirs, noise, first_error)
        if error > _allowed(ours, noise) and first_error is None:
            first_error = theirs
            if not candidate.approximates and not reference.approximates:
                return _numeric(theirs, where, error, noise)
    if len(reference.steps) != len(candidate.steps):
        return _ended(reference, candidate)
    return None


def _identity(ours: CanvasStep, theirs: CanvasStep) -> CanvasDivergence | None:
    """What each side has in front of it: blocks, tokens, open positions, slots attended to."""
    here: dict[str, Any] = {"step": theirs.step, "block": theirs.block, "block_step": theirs.block_step}
    name = f"step {theirs.block_step} of block {theirs.block}"
    if ours.positions != theirs.positions:
        (first, last), (begin, end) = ((s.positions[0], s.positions[-1]) for s in (ours, theirs))
        text = f"{name} fills in positions {begin} to {end}, the reference {first} to {last}: other blocks"
        return CanvasDivergence(kind="positions", sentence=text, position=begin, **here)
    if (ours.ids, ours.open) != (theirs.ids, theirs.open):
        pairs = zip(ours.positions, ours.ids, theirs.ids, ours.open, theirs.open, strict=True)
        place, right, wrong = next((p, a, b) for p, a, b, c, d in pairs if (a, c) != (b, d))
        text = f"in front of {name} position {place} holds id {wrong}, the reference has {right}: not the same canvas"
        return CanvasDivergence(kind="canvas ids", sentence=text, position=place, **here)
    for given, right in zip(theirs.handed, theirs.computed, strict=False):
        if given != right:
            text = f"{name} is handed the rotary table of position {given} for the token at {right}"
            return CanvasDivergence(kind="positions", sentence=text, position=right, **here)
    if ours.keys and theirs.keys and ours.keys - ours.tokens_in_row != theirs.keys - theirs.tokens_in_row:
        text = f"{name} attends to {theirs.keys} slots, the reference to {ours.keys}"
        return CanvasDivergence(kind="mask", sentence=text, **here)
    return None


def _allowed(ours: CanvasStep, noise: float | None) -> float:
    """How far rounding may take two sides apart: the reference's own error, and twice that for the candidate.

    Over few positions the largest error of one side says little about that of another, as in a verdict.
    """
    count = max(1, len(ours.sure))
    return max(noise or 0.0, FLOOR) * (1 + 2 * (1 + 5 / math.sqrt(count)))


def _error(ours: CanvasStep, theirs: CanvasStep) -> tuple[float, int | None]:
    """Largest difference of probabilities over the positions open in both, and where; 1 where the proposals differ."""
    a, b = ours.sure, theirs.sure
    mine, other = (dict(zip(s.positions, s.tokens, strict=True)) for s in (ours, theirs))
    gaps = {p: (abs(a[p] - b[p]) if mine[p] == other[p] else max(a[p], b[p])) for p in a.keys() & b.keys()}
    if not gaps:
        return 0.0, None
    where = max(gaps, key=lambda p: (gaps[p], -p))
    return gaps[where], where


def _parted(
    reference: CanvasSide,
    candidate: CanvasSide,
    ours: CanvasStep,
    theirs: CanvasStep,
    noise: float | None,
    first_error: CanvasStep | None,
) -> CanvasDivergence:
    """Other commits: because of the numbers, by a hair, or because of the rule."""
    allowed = _allowed(ours, noise)
    error, _ = _error(ours, theirs)
    a, b = ours.commits, theirs.commits
    odd = sorted(p for p in a.keys() | b.keys() if a.get(p) != b.get(p))
    position = odd[0]
    name = f"step {theirs.block_step} of block {theirs.block}"
    what = f"{name} commits {_listed(b)} where the reference commits {_listed(a)}"
    margin = _margin(ours, a.keys(), b.keys(), reference.settings.get("threshold"))
    sure = f"probabilities of the open positions differ by at most {error:.2g}"
    known = "rounding alone moves them by" if noise is not None else "noise was not measured, taken as"
    if error <= allowed and margin is not None and margin <= allowed:
        kind: Kind = "tie flip"
        why = f"a tie: {sure}, and the choice hangs on {margin:.2g}"
    elif error <= allowed:
        kind = "commit set"
        rules = [side.settings.get("commit", "?") for side in (reference, candidate)]
        of = f" ({rules[0]} against {rules[1]})" if rules[0] != rules[1] else f" ({rules[0]} on both sides)"
        why = f"{sure}: not the numbers, but the rule or the schedule chooses otherwise{of}"
    else:
        kind = "numeric"
        first = "" if first_error is None else f", beyond rounding from step {first_error.step} on"
        design = "; the candidate reuses states by design" if candidate.approximates else ""
        why = f"{sure}{first} ({known} {noise or FLOOR:.2g}){design}"
    return CanvasDivergence(
        kind=kind,
        sentence=f"{what}; {why}",
        step=theirs.step,
        block=theirs.block,
        block_step=theirs.block_step,
        position=position,
        error=error,
        noise=noise,
        margin=margin,
        first_error=None if first_error is None else first_error.step,
        by_design=kind == "numeric" and candidate.approximates,
    )


def _margin(ours: CanvasStep, a: Any, b: Any, threshold: float | None) -> float | None:
    """Least change of the reference's probabilities that makes its choice the candidate's; None if none would."""
    sure = ours.sure
    left, right = [sure[p] for p in a - b if p in sure], [sure[p] for p in b - a if p in sure]
    if left and right:
        return max(max(left) - min(right), 0.0)
    if threshold is not None and (left or right):
        return max(abs(p - threshold) for p in left or right)
    return None


def _numeric(step: CanvasStep, position: int | None, error: float, noise: float | None) -> CanvasDivergence:
    known = "rounding explains" if noise is not None else "noise was not measured, taken as"
    return CanvasDivergence(
        kind="numeric",
        sentence=f"step {step.block_step} of block {step.block}: the same commits still, but at position {position} "
        f"the probability is off by {error:.2g} ({known} {noise or FLOOR:.2g})",
        step=step.step,
        block=step.block,
        block_step=step.block_step,
        position=position,
        error=error,
        noise=noise,
    )


def _ended(reference: CanvasSide, candidate: CanvasSide) -> CanvasDivergence:
    counts = [len(side.steps) for side in (reference, candidate)]
    short = reference if counts[0] < counts[1] else candidate
    return CanvasDivergence(
        kind="step count",
        step=min(counts),
        sentence=f"the {short.who} ends after {min(counts)} steps ({short.finish or 'stopped'}), the other side "
        f"after {max(counts)}",
    )


def _listed(commits: dict[int, int]) -> str:
    """`position 3 (id 5), 7 (id 2) and 4 more`."""
    if not commits:
        return "nothing"
    shown = ", ".join(f"{p} (id {t})" for p, t in list(commits.items())[:3])
    more = f" and {len(commits) - 3} more" if len(commits) > 3 else ""
    return f"position{'s' if len(commits) > 1 else ''} {shown}{more}"
