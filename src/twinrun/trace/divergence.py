"""Find where two recorded runs part, and say of which kind the parting is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from twinrun.records.tokens import first_difference
from twinrun.trace.side import Side
from twinrun.trace.step import Scored, TracedStep

Kind = Literal[
    "input ids", "positions", "shapes", "mask", "cache length", "step count", "tie flip", "numeric divergence"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first place where two runs part.

    Attributes:
        kind: what differs first. Identity (ids, positions, shapes, masks, cache lengths) comes before numbers.
        sentence: in words, with the numbers.
        step: forward of the candidate.
        position: absolute position whose row of scores shows it.
        margin: oracle's log-probability gap of the two likeliest tokens there, nats.
        noise: the reference's own worst error over the common text, nats.
        ratio: the candidate's error there over that noise.
    """

    kind: Kind
    sentence: str
    step: int | None = None
    position: int | None = None
    margin: float | None = None
    noise: float | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        """The sentence."""
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What a verdict measured at one position of the common text, nats."""

    margin: float
    error: float
    gap_up: float | None
    stands_out: bool


def first_divergence(
    reference: Side, candidate: Side, numbers: Mapping[int, Numbers], noise: float | None
) -> Divergence | None:
    """Compare two sides position by position as long as their tokens agree.

    Args:
        reference: trusted side.
        candidate: side on trial.
        numbers: position -> what was measured there; may be empty (two traces from disk).
        noise: reference's own worst error, nats.

    Returns:
        None if the runs agree to their last step.
    """
    if reference.prompt != candidate.prompt:
        at = first_difference(reference.prompt, candidate.prompt)
        a, b = (side.prompt[at] if at < len(side.prompt) else "nothing" for side in (reference, candidate))
        return Divergence(
            kind="input ids", position=at, sentence=f"the prompts part at token {at}: id {a} against id {b}"
        )
    theirs = candidate.by_position()
    for position, (step, row) in reference.by_position().items():
        if position not in theirs:
            return _ended(reference, candidate, position)
        other_step, other = theirs[position]
        found = _handed(reference, candidate, step, other_step, position)
        if found is not None:
            return found
        measured = numbers.get(position)
        if row.token != other.token:
            return _flip(row, other, other_step, measured, noise)
        if measured is not None and measured.stands_out:
            return _numeric(other_step, position, measured, noise)
    extra = [p for p in theirs if p not in reference.by_position()]
    return _ended(reference, candidate, min(extra)) if extra else None


def _handed(
    reference: Side, candidate: Side, ours: TracedStep, theirs: TracedStep, position: int
) -> Divergence | None:
    """What was handed over: position ids, masks, cache lengths, shapes."""
    at = {"step": theirs.step, "position": position}
    if ours.position_ids and theirs.position_ids:
        right = ours.position_ids[1] + position - ours.last
        given = theirs.position_ids[1] + position - theirs.last
        if right != given:
            text = f"step {theirs.step} was handed position id {given} for the token at position {right}"
            return Divergence(kind="positions", sentence=text, **at)
    for side, step in ((reference, ours), (candidate, theirs)):
        due = side.due(step)
        wrong = next((i for i, (n, m) in enumerate(zip(step.cache, due, strict=False)) if n != m), None)
        if wrong is not None:
            spared = step.last + 1 - due[wrong]
            less = f" and {spared} were dropped by its schedule" if spared else ""
            text = (
                f"behind step {step.step} of the {side.who} layer {wrong} holds {step.cache[wrong]} tokens in its "
                f"cache where {step.last + 1} came{less}"
            )
            return Divergence(kind="cache length", sentence=text, **at)
    if ours.keys and theirs.keys and ours.keys[1] != theirs.keys[1] and ours.last == theirs.last:
        text = (
            f"step {theirs.step} lets position {position} attend to {theirs.keys[1]} keys, "
            f"the reference to {ours.keys[1]}"
        )
        return Divergence(kind="mask", sentence=text, **at)
    if (
        ours.hidden is not None
        and theirs.hidden is not None
        and ours.hidden.shape[1:] != theirs.hidden.shape[1:]
    ):
        text = f"step {theirs.step} has {theirs.hidden.shape[1] - 1} layers, the reference {ours.hidden.shape[1] - 1}"
        return Divergence(kind="shapes", sentence=text, **at)
    return None


def _flip(
    row: Scored, other: Scored, step: TracedStep, measured: Numbers | None, noise: float | None
) -> Divergence:
    """Two different tokens: a tie that rounding may break, or a real difference."""
    where = f"step {step.step}, position {other.position}"
    what = f"{where}: the reference goes on with id {row.token}, the candidate with id {other.token}"
    if measured is None or noise is None:
        return Divergence(
            kind="numeric divergence",
            sentence=f"{what} (margin of the reference {row.margin:.2g} nats; noise was not measured)",
            step=step.step,
            position=other.position,
            margin=row.margin,
        )
    ratio = measured.error / noise if noise > 0 else None
    is_tie = measured.margin <= 2 * noise and not measured.stands_out
    why = (
        f"a tie: the oracle's two likeliest tokens are {measured.margin:.2g} nats apart, inside twice the rounding "
        f"noise of {noise:.2g}"
        if is_tie
        else f"not a tie: the oracle's margin is {measured.margin:.2g} nats, rounding noise {noise:.2g}, "
        f"the candidate's error {measured.error:.2g}"
    )
    return Divergence(
        kind="tie flip" if is_tie else "numeric divergence",
        sentence=f"{what}; {why}",
        step=step.step,
        position=other.position,
        margin=measured.margin,
        noise=noise,
        ratio=ratio,
    )


def _numeric(step: TracedStep, position: int, measured: Numbers, noise: float | None) -> Divergence:
    ratio = measured.error / noise if noise else None
    times = "" if ratio is None else f", {ratio:.3g}x the reference's own worst"
    up = "" if measured.gap_up is None else f"; one precision up {measured.gap_up:.2g} nats remain"
    return Divergence(
        kind="numeric divergence",
        sentence=f"step {step.step}, position {position}: the same token still, but the candidate is off by "
        f"{measured.error:.2g} nats{times}{up}",
        step=step.step,
        position=position,
        margin=measured.margin,
        noise=noise,
        ratio=ratio,
    )


def _ended(reference: Side, candidate: Side, position: int) -> Divergence:
    counts = [len(side.by_position()) for side in (reference, candidate)]
    short = reference if counts[0] < counts[1] else candidate
    return Divergence(
        kind="step count",
        sentence=f"the {short.who} ends before position {position} ({short.finish or 'stopped'}): "
        f"{counts[0]} scored positions against {counts[1]}",
        position=position,
    )
