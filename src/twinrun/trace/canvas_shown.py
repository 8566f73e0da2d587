"""A trace of two diffusion runs as one plain record, with the text of every token: for the page and the terminal."""

from __future__ import annotations

from typing import Any

from twinrun.trace.canvas_side import CanvasSide
from twinrun.trace.canvas_step import CanvasStep
from twinrun.trace.canvas_trace import CANVAS_SCHEMA, CanvasTrace


def canvas_shown(trace: CanvasTrace) -> dict[str, Any]:
    """Return the whole trace as plain JSON types; unknown is None.

    Cost: about 30 bytes a step and position of a block.
    """
    about = trace.about()
    prompt = trace.reference.prompt
    names = (
        "model",
        "dtype",
        "level",
        "env",
        "seconds",
        "noise",
        "divergence",
        "findings",
        "passed",
        "cosines",
    )
    return {
        "schema": CANVAS_SCHEMA,
        **{name: about[name] for name in names},
        "complete": trace.complete,
        "mask_id": trace.reference.mask_id,
        "prompt": {"ids": prompt, "pieces": [_piece(trace, i) for i in prompt]},
        "sides": {side.who: _side(trace, side) for side in trace.sides if side.runner},
        "blame": None if trace.blame is None else trace.blame.to_json(),
    }


def _piece(trace: CanvasTrace, token: int) -> str:
    return trace.pieces.get(token, f"<{token}>")


def _side(trace: CanvasTrace, side: CanvasSide) -> dict[str, Any]:
    *_, last = (list(canvas) for canvas in side.canvases())
    start = len(side.prompt)
    return {
        "runner": side.runner,
        "settings": {k: v for k, v in side.settings.items() if k not in ("skip_limits", "threshold")},
        "text": side.text,
        "finish": side.finish,
        "seconds": side.seconds,
        "start": start,
        "canvas": [_cell(trace, side, token) for token in last[start:]],
        "skipped": side.skip_totals(),
        "steps": [_step(trace, side, step) for step in side.steps],
    }


def _cell(trace: CanvasTrace, side: CanvasSide, token: int) -> dict[str, Any]:
    """A position of the last canvas; one that is still open has no text."""
    return {"id": token, "piece": None if token == side.mask_id else _piece(trace, token)}


def _step(trace: CanvasTrace, side: CanvasSide, step: CanvasStep) -> dict[str, Any]:
    skips = step.skips
    start = len(side.prompt)
    return {
        "step": step.step,
        "block": step.block,
        "block_step": step.block_step,
        "full": step.full,
        "seconds": step.seconds,
        "begin": step.positions[0],
        "size": len(step.positions),
        "computed": len(step.computed),
        "confidence": [p if is_open else None for p, is_open in zip(step.confidence, step.open, strict=True)],
        "proposals": [_piece(trace, token) for token in step.tokens],
        "commits": [[p, token, _piece(trace, token)] for p, token in step.commits.items()],
        "writes": [[p, new, _piece(trace, new)] for p, _old, new in step.strays if p >= start],
        "skipped": step.skipped,
        "cosine": None if skips is None else skips.mean,
        "compared": None if skips is None else skips.compared,
    }
