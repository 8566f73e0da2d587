"""A first look that may settle blame at once: layers in the deployed precision, and only the odd one raised.

Two forwards of the same shape agree bit for bit up to the module that computes something else. So where one layer
differs and nothing before it does, that layer alone is run again with the arguments it had, on both sides and one
precision up, and the same rule as in the full search names the module inside. Whatever leaves a doubt settles nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from twinrun.numerics.fingerprint import difference
from twinrun.numerics.precision import one_up, parse_dtype
from twinrun.verify.activations import Activations, By, layer_of, modules_by
from twinrun.verify.called import Held, called
from twinrun.verify.case import Case
from twinrun.verify.culprit import Blame
from twinrun.verify.elders import elders_agree
from twinrun.verify.gaps import Gap, Noise, comparable, gaps
from twinrun.verify.handed import findings
from twinrun.verify.pinpoint import Scene, first_gap, pinpoint, table_line
from twinrun.verify.recorder import recording

SAME = Noise(factor=0.0, floor=64 * torch.finfo(torch.float64).eps)
"""Bit for bit: what is left is the float64 rounding of two fingerprints of one row."""
MOST_SUSPECTS = 4


def glance(reference: Any, candidate: Any, case: Case, by: By) -> Blame | None:
    """Name the module, or return None where only the full search can.

    Nothing is settled if the sides run forwards of unequal shape or were handed different things, if what differs first
    is no layer or leaf, if the layer called by itself does not repeat the reference's outputs bit for bit, or if one
    precision up it explains nothing at the position where the bits part. Equal bits hide what is below the deployed
    precision, so the same module of every earlier layer is tried, too: a bug in all layers begins in the first.

    Args:
        reference: trusted side.
        candidate: side on trial, in the same precision.
        case: what is scored; of one row the prompt is tried, in one forward.
        by: how fine to look.

    Cost: one forward of each side over the prompt, with hooks on layers only; three calls of one layer, two of them one
    precision up, and three of the named module in every layer before it. The inputs of the layers are held, at most
    `twinrun.verify.called.HELD_BYTES`.
    """
    sides = (reference, candidate)
    if by == "step" or len(case.rows) != 1 or not all(hasattr(side, "raised_part") for side in sides):
        return None
    if any(side.can_raise() is not None for side in sides):
        return None
    row = case.rows[0][: case.starts[0]]
    held = Held(), Held()
    low, tried = (_seen(side, row, mine) for side, mine in zip(sides, held, strict=True))
    if not _same_forward(low, tried, len(row)) or findings(low, tried) or any(h.is_full for h in held):
        return None
    differing = list(gaps(low, low, tried, 0, SAME))
    first, position = first_gap(differing)
    if first is None or not first.breaks_at(position):
        return None
    units = _units(differing, low)
    if first.module not in units or not 1 <= len(set(units.values())) <= MOST_SUSPECTS:
        return None
    seen = _Seen(case=case, low=low, tried=tried, held=held, by=by)
    found = _closer(reference, candidate, seen, list(dict.fromkeys(units.values())))
    if found is None or found.kind != "module" or found.position is None or found.position > position:
        return None
    module = str(found.module)
    unit = _unit(module, low.order)
    if unit is None or not elders_agree(reference, candidate, module, unit, held, low.forwards[0], row):
        return None
    return replace(found, table=_whole_table(found.table, differing, tried, parse_dtype(candidate.dtype)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The first look: both sides in the deployed precision."""

    case: Case
    low: Activations
    tried: Activations
    held: tuple[Held, Held]
    by: By


def _seen(side: Any, row: tuple[int, ...], held: Held) -> Activations:
    """Score the prompt with hooks on layers and what is outside of them."""
    wanted = modules_by("layer")
    with ExitStack() as undo:
        held.attach(side.module, wanted, undo)
        with recording(side.module, [row], wanted) as found:
            side.score_batch([list(row)], [len(row)])
    # A model that is new to its runner is tried on ids of its own first: such a forward is no step.
    own = (f for f in found.forwards if any(stop > first for first, stop in f.fresh))
    kept = list(own)
    number_of = {forward.index: number for number, forward in enumerate(kept)}
    found.forwards = [replace(forward, index=number) for number, forward in enumerate(kept)]
    for one in found.rows:
        if one.step_of is not None:
            steps = [number_of.get(step, -1) for step in one.step_of.tolist()]
            one.step_of = torch.tensor(steps, dtype=one.step_of.dtype)
    return found


def _same_forward(low: Activations, tried: Activations, width: int) -> bool:
    """Whether both sides ran one forward over the whole prompt, and nothing else."""
    if comparable(low, tried) is not None:
        return False
    for side in (low, tried):
        if len(side.forwards) != 1:
            return False
        only = side.forwards[0]
        if only.width != width or only.starts != [0] or any(only.cache) or only.strays or only.behind:
            return False
    return True


def _units(differing: list[Gap], low: Activations) -> dict[str, str]:
    """Modules whose outputs part on equal inputs -> the layer or leaf to look into, in order of execution."""
    found = {}
    for gap in differing:
        unit = _unit(gap.module, low.order)
        if unit is not None and bool(((gap.beyond_out > 1) & (gap.beyond_in <= 1)).any()):
            found[gap.module] = unit
    return found


def _unit(module: str, order: list[str]) -> str | None:
    """Layer that a module is a part of; outside of layers the module itself, if nothing was recorded inside it."""
    if layer_of(module) is None:
        inside = any(name.startswith(f"{module}.") for name in order)
        return None if inside or not module else module
    parts = module.split(".")
    return ".".join(parts[: next(i for i, part in enumerate(parts) if part.isdigit()) + 1])


def _closer(reference: Any, candidate: Any, seen: _Seen, units: list[str]) -> Blame | None:
    """Run single modules again on what each side gave them, one precision up, and apply the rule of the full search."""
    low_dtype = parse_dtype(reference.dtype)
    noise, wanted = Noise.one_up(low_dtype), modules_by(seen.by)
    mine, theirs = seen.held
    row = seen.case.rows[0][: seen.low.forwards[0].width]
    compared: list[Gap] = []
    whole: Activations | None = None
    for unit in units:
        runs = [
            called(side, unit, held, row, seen.low.forwards[0], wanted, up=up)
            for side, held, up in (
                (reference, mine, False),
                (reference, mine, True),
                (candidate, theirs, True),
            )
        ]
        own, truth, tried = runs
        if own is None or truth is None or tried is None or not _repeats(own, seen.low, unit):
            return None
        compared += [replace(g, order=len(compared) + g.order) for g in gaps(own, truth, tried, 0, noise)]
        if whole is None:
            whole = tried
        else:
            whole.kinds |= tried.kinds
            whole.attentions |= tried.attentions
    assert whole is not None
    whole.forwards = seen.tried.forwards
    scene = Scene(
        reference=reference,
        candidate=candidate,
        case=seen.case,
        handed=[],
        gaps=compared,
        tried=whole,
        raised=True,
        precision=one_up(low_dtype),
        is_replayed=True,
    )
    return pinpoint(scene)


def _repeats(own: Activations, low: Activations, name: str) -> bool:
    """Whether a module called by itself gives what it gave in the forward."""
    mine, theirs = own.rows[0].prints, low.rows[0].prints
    slots = [slot for slot in theirs if slot.module == name]
    return any(not slot.is_input for slot in slots) and all(
        slot in mine and bool((difference(mine[slot], theirs[slot]) <= SAME.floor).all()) for slot in slots
    )


def _whole_table(
    closer: list[dict[str, Any]], differing: list[Gap], tried: Activations, low: torch.dtype
) -> list[dict[str, Any]]:
    """Lines of every layer as it was seen first, in order of execution; those looked into, one precision up."""
    floor = Noise.deployed(low).floor
    inside: dict[str | None, list[dict[str, Any]]] = {}
    for line in closer:
        inside.setdefault(_unit(line["module"], []), []).append(line)
    known = {line["module"] for line in closer}
    lines = []
    for gap in differing:
        if gap.module in inside:
            lines += inside[gap.module]
        elif gap.module not in known:
            lines.append(table_line(replace(gap, noise=floor, beyond_out=gap.error_out / floor), tried, low))
    return lines
