"""What must hold in every step of a diffusion run, whatever the numbers are: positions first, then the canvas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from twinrun.trace.canvas_side import CanvasSide
from twinrun.trace.canvas_step import CanvasStep

Where = Literal[
    "skip decision", "positions", "head input", "keys", "mask", "mask id", "prompt", "canvas", "progress"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong in itself, found in one step of one side.

    Attributes:
        where: "skip decision" (what it compares, or what it made of it), "positions" (rotary positions handed over),
            "head input" (hidden states that are not final), "keys" (what was stored), "mask" (what may be attended
            to), "mask id" (committed as if it were a token), "prompt" (overwritten), "canvas" (a final token
            changed), "progress" (nothing committed).
        sentence: in words, with positions.
    """

    where: Where
    sentence: str
    side: Literal["reference", "candidate"]
    step: int
    block: int
    block_step: int
    position: int | None = None

    def __str__(self) -> str:
        """The sentence."""
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)


def findings(side: CanvasSide) -> list[Finding]:
    """Check every step of a side; at most one finding of a kind in each block, the first.

    Example:
        >>> side = CanvasSide(who="candidate", runner="", dtype="", identity={}, prompt=[5], mask_id=1, gen_length=4)
        >>> findings(side)
        []
    """
    found: dict[tuple[str, int], Finding] = {}
    for step in side.steps:
        for where, position, sentence in _checked(side, step):
            found.setdefault(
                (where, step.block),
                Finding(
                    where=where,
                    sentence=sentence,
                    side=side.who,
                    step=step.step,
                    block=step.block,
                    block_step=step.block_step,
                    position=position,
                ),
            )
    return sorted(found.values(), key=lambda finding: finding.step)


Check = Iterator[tuple[Where, int | None, str]]


def _checked(side: CanvasSide, step: CanvasStep) -> Check:
    at = f"step {step.block_step} of block {step.block}"
    yield from _compared(side, step, at)
    yield from _positions(step, at)
    yield from _mask(step, at)
    yield from _head(step, at)
    yield from _rule(side, step, at)
    yield from _canvas(side, step, at)


def _compared(side: CanvasSide, step: CanvasStep, at: str) -> Check:
    """Positions of the rows, and of what they were compared with."""
    if step.skips is None:
        return
    pairs = list(zip(step.skips.compared, step.positions, strict=True))
    wrong = [(then, now) for then, now in pairs if then != now]
    if not wrong:
        return
    then, now = wrong[0]
    apart = {now - then for then, now in wrong}
    how = f", all {now - then} apart" if len(apart) == 1 and len(wrong) > 1 else ""
    rows = step.skips.computed_at[pairs.index(wrong[0])]
    full = next((s for s in side.steps if s.block == step.block and s.block_step == rows), None)
    shapes = (
        f"; row j of [1, {len(full.computed)}, d] (step {rows}) against row j of [1, {len(step.computed)}, d]"
        if full is not None and len(full.computed) != len(step.computed)
        else ""
    )
    yield (
        "skip decision",
        now,
        f"{at} compares position {then} with position {now} ({len(wrong)} of {len(pairs)} tokens meet the states of "
        f"another position{how}{shapes})",
    )


def _positions(step: CanvasStep, at: str) -> Check:
    """Rotary tables of the first layer, and of the last, which may have fewer tokens."""
    for given, right in zip(step.handed, step.computed, strict=False):
        if given != right:
            text = f"{at} hands the first layer the rotary table of position {given} for the token at {right}"
            yield "positions", right, text
            break
    skips = step.skips
    if skips is None or skips.layer is None:
        return
    through = [p for p, active in zip(step.positions, skips.active, strict=True) if active]
    for given, right in zip(step.deep, through, strict=False):
        if given != right:
            yield (
                "positions",
                right,
                f"{at} hands the layers from {skips.layer} on the rotary table of position {given} for the token at "
                f"position {right}",
            )
            break


def _mask(step: CanvasStep, at: str) -> Check:
    right = step.tokens_in_row
    if step.keys and step.keys != right:
        yield (
            "mask",
            None,
            f"{at} lets its queries attend to {step.keys} slots where the row has {right} tokens: "
            + ("padding is attended to" if step.keys > right else "tokens are hidden from it"),
        )


def _head(step: CanvasStep, at: str) -> Check:
    """Only tokens that went through every layer have a new final hidden state."""
    left_out = set(step.skipped)
    wrong = [p for p in step.read if p in left_out]
    if wrong and step.skips is not None:
        yield (
            "head input",
            wrong[0],
            f"{at} gives the head hidden states of {len(wrong)} skipped tokens as new (position {wrong[0]} first), "
            f"which have passed {step.skips.layer} layers only; they compete in the commit",
        )


def _rule(side: CanvasSide, step: CanvasStep, at: str) -> Check:
    """The decision follows from its own cosines, in this row."""
    skips, limits = step.skips, side.settings.get("skip_limits")
    if skips is None or skips.mean is None or skips.low is None or not limits:
        return
    every = limits.get("refresh_every")
    if every and step.block_step % every == 0:
        return
    near = _near(skips.changed, int(limits.get("neighbours") or 0))
    cells = zip(step.positions, skips.active, near, skips.mean, skips.low, strict=True)
    for position, active, moved, mean, low in cells:
        if mean is None or low is None:
            continue
        stable = not moved and mean > limits["threshold"] and low >= limits["outlier"]
        if stable == active:
            did = "computes" if active else "skips"
            yield (
                "skip decision",
                position,
                f"{at} {did} position {position}, whose mean cosine is {mean:.6g} and lowest {low:.6g} "
                f"(skipped above {limits['threshold']:g}, from {limits['outlier']:g}): the decision is not its own",
            )
            return


def _near(changed: list[bool], neighbours: int) -> list[bool]:
    """Which tokens have changed, or stand so near to one that has."""
    return [any(changed[max(0, i - neighbours) : i + neighbours + 1]) for i in range(len(changed))]


def _canvas(side: CanvasSide, step: CanvasStep, at: str) -> Check:
    """What a step may change: open positions of its block, each once, and not with the mask."""
    for position, token in step.commits.items():
        if token == side.mask_id:
            text = f"{at} commits the mask id {token} at position {position}: it stays undecided for ever"
            yield "mask id", position, text
            break
    start = len(side.prompt)
    for position, before, after in step.strays:
        if position < start:
            text = f"{at} overwrites position {position} of the prompt: id {before} becomes {after}"
            yield "prompt", position, text
            break
    asked = [p for p in step.commits if p < start]
    if asked:
        text = (
            f"{at} commits a token at position {asked[0]}, a mask in the prompt, which is text: overwritten"
        )
        yield "prompt", asked[0], text
    closed = {p for p, is_open in zip(step.positions, step.open, strict=True) if not is_open}
    again = [p for p in step.commits if p in closed]
    if again:
        yield "canvas", again[0], f"{at} commits position {again[0]}, which was decided before"
    if not step.commits and any(step.open):
        yield "progress", None, f"{at} commits nothing though {sum(step.open)} positions are open"
