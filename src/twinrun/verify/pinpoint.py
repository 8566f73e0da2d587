"""From compared modules and findings to one place and one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from twinrun.numerics.precision import dtype_name
from twinrun.verify.activations import Activations, layer_of
from twinrun.verify.case import Case
from twinrun.verify.culprit import Blame
from twinrun.verify.gaps import Gap
from twinrun.verify.handed import Finding
from twinrun.verify.shadow import shadow_error

SHADOW_CLEARS = (
    "; on the reference's inputs and with the reference's cache the module is right, "
    "so what it read from the cache is wrong"
)
STILL_WRONG = "; it is as wrong on the reference's own inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that is known about one case."""

    reference: Any
    candidate: Any
    case: Case
    handed: list[Finding]
    gaps: list[Gap]
    tried: Activations
    raised: bool
    precision: torch.dtype
    is_replayed: bool = False
    """Whether modules were called by themselves, without a cache, on inputs that agree bit for bit."""


def pinpoint(scene: Scene) -> Blame:
    """Name the first place, or say that nothing differs beyond rounding."""
    gap, position = first_gap(scene.gaps)
    ids = next((f for f in scene.handed if f.kind == "input ids"), None)
    if ids is not None:
        return _of_finding(scene, ids, None)
    if gap is None:
        lengths = next((f for f in scene.handed if f.kind == "cache"), None)
        return _nothing(scene) if lengths is None else _of_finding(scene, lengths, None)
    before = [f for f in scene.handed if f.row == gap.row and (f.position, f.order) <= (position, gap.order)]
    if before:
        return _of_finding(scene, min(before, key=_precedence), gap)
    return _of_module(scene, gap, position)


def _precedence(found: Finding) -> tuple[int, int, int]:
    """A wrong cache length makes wrong positions and masks, and wrong positions are read before any mask."""
    return ("cache", "positions", "mask").index(found.kind), found.position, found.order


def first_gap(found: Iterable[Gap]) -> tuple[Gap | None, int]:
    """The earliest position at which anything breaks; there the module that finished first with inputs that agree."""
    best: tuple[tuple[int, int, int, int], Gap, int] | None = None
    for gap in found:
        bad = (gap.beyond_out > 1).nonzero()[:, 0]
        if not len(bad):
            continue
        position = int(bad[0])
        key = (gap.row, position, 0 if gap.breaks_at(position) else 1, gap.order)
        if best is None or key < best[0]:
            best = (key, gap, position)
    return (None, -1) if best is None else (best[1], best[2])


def _of_module(scene: Scene, gap: Gap, position: int) -> Blame:
    """A module broke on inputs that agree: is it the module, or the cache that it reads?"""
    step = _step(scene, gap.row, position)
    kind, mode, why = "module", "propagated", ""
    reads = gap.module in scene.tried.attentions and step is not None and scene.tried.forwards[step].cache
    if reads and scene.is_replayed:
        mode, why = "shadow", STILL_WRONG
    elif reads and step is not None:
        tokens = scene.tried.rows[gap.row].tokens[: position + 1]
        past = max(0, scene.tried.forwards[step].starts[gap.row])
        alone = shadow_error(scene.reference, scene.candidate, gap.module, tokens, past, raised=scene.raised)
        if alone is not None:
            mode = "shadow"
            if float(alone.max()) <= gap.noise:
                kind = "cache"
                why = SHADOW_CLEARS
            else:
                why = STILL_WRONG
    error_in, error_out = float(gap.error_in[position]), float(gap.error_out[position])
    text = (
        f"{_name(scene, gap.module)}: inputs agree ({error_in:.2g}) and outputs differ by {error_out:.2g}, "
        f"where rounding explains {gap.noise:.2g} in {dtype_name(scene.precision)}{why}"
    )
    return _blame(scene, kind, gap.module, gap.row, position, text, gap, mode)


def _of_finding(scene: Scene, found: Finding, gap: Gap | None) -> Blame:
    where = f"{_name(scene, found.module)}: " if found.module else ""
    return _blame(
        scene, found.kind, found.module, found.row, found.position, where + found.text, gap, "propagated"
    )


def _blame(
    scene: Scene,
    kind: Any,
    module: str | None,
    row: int,
    position: int,
    text: str,
    gap: Gap | None,
    mode: Any,
) -> Blame:
    step = _step(scene, row, position)
    label = scene.case.label if len(scene.case.rows) == 1 else f"{scene.case.label}, row {row}"
    at = f"step {step}, position {position}" if step is not None else f"position {position}"
    return Blame(
        kind=kind,
        sentence=f"{label}, {at}: {text}",
        module=module,
        layer=None if module is None else layer_of(module),
        step=step,
        position=position,
        row=row,
        mode=mode,
        precision=dtype_name(scene.precision),
        error_in=None if gap is None else float(gap.error_in[position]),
        error_out=None if gap is None else float(gap.error_out[position]),
        noise=None if gap is None else gap.noise,
        case=label,
        table=table(scene),
    )


def _nothing(scene: Scene) -> Blame:
    worst = max((float(g.beyond_out.max()) for g in scene.gaps), default=0.0)
    return Blame(
        kind="none",
        sentence=f"no module differs beyond rounding in {dtype_name(scene.precision)} "
        f"(the largest difference is {worst:.2g} of the limit)",
        precision=dtype_name(scene.precision),
        case=scene.case.label,
        table=table(scene),
    )


def table(scene: Scene) -> list[dict[str, Any]]:
    """One line a module and row: worst errors over positions, and where the outputs first leave the noise."""
    return [table_line(gap, scene.tried, scene.precision) for gap in scene.gaps]


def table_line(gap: Gap, tried: Activations, precision: torch.dtype) -> dict[str, Any]:
    """One module in one row."""
    bad = (gap.beyond_out > 1).nonzero()[:, 0]
    return {
        "module": gap.module or "(model)",
        "type": tried.kinds.get(gap.module, ""),
        "layer": layer_of(gap.module),
        "row": gap.row,
        "error_in": float(gap.error_in.max()),
        "error_out": float(gap.error_out.max()),
        "noise": gap.noise,
        "precision": dtype_name(precision),
        "position": int(bad[0]) if len(bad) else None,
    }


def _step(scene: Scene, row: int, position: int) -> int | None:
    steps = scene.tried.rows[row].step_of
    return None if steps is None or int(steps[position]) < 0 else int(steps[position])


def _name(scene: Scene, module: str | None) -> str:
    if not module:
        return f"behind the head ({scene.tried.kinds.get('', 'the model')})"
    return f"{module} ({scene.tried.kinds.get(module, '')})"
