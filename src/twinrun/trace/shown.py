"""A trace as one plain record, with the text of every token: what the page and the terminal show."""

from __future__ import annotations

from typing import Any

from twinrun.trace.record import SCHEMA, Trace
from twinrun.trace.side import Side
from twinrun.trace.step import Scored, TracedStep


def shown(trace: Trace) -> dict[str, Any]:
    """Return the whole trace as plain JSON types; unknown is None.

    Cost: about 600 bytes a scored position and side.
    """
    about = trace.about()
    prompt = trace.reference.prompt
    return {
        "schema": SCHEMA,
        **{name: about[name] for name in ("model", "dtype", "mode", "env", "seconds")},
        "complete": trace.complete,
        "prompt": {"ids": prompt, "pieces": [_piece(trace, i) for i in prompt]},
        "sides": {side.who: _side(trace, side) for side in trace.sides if side.runner},
        **{name: about[name] for name in ("divergence", "verdict", "blame", "curves")},
    }


def _piece(trace: Trace, token: int | None) -> str | None:
    if token is None:
        return None
    return trace.pieces.get(token, f"<{token}>")


def _side(trace: Trace, side: Side) -> dict[str, Any]:
    return {
        "runner": side.runner,
        "text": side.text,
        "finish": side.finish,
        "seconds": side.seconds,
        **({} if side.prune is None else {"prune": side.prune}),
        "steps": [_step(trace, step) for step in side.steps],
    }


def _step(trace: Trace, step: TracedStep) -> dict[str, Any]:
    return {
        "step": step.step,
        "seconds": step.seconds,
        "computed": [step.first, step.last],
        "position_ids": None if step.position_ids is None else list(step.position_ids),
        "cache": list(step.cache) or None,
        "keys": None if step.keys is None else list(step.keys),
        "rows": [_row(trace, row) for row in step.rows],
    }


def _row(trace: Trace, row: Scored) -> dict[str, Any]:
    top = zip(row.top_ids, row.top_probs, strict=True)
    return {
        "position": row.position,
        "token": row.token,
        "piece": _piece(trace, row.token),
        "logprob": row.logprob,
        "top": [[i, _piece(trace, i), p] for i, p in top],
        "entropy": row.entropy,
        "margin": row.margin,
    }
