"""Whether a step that skipped tokens stored the keys that the same step stores without a skip.

Up to the layer where the first token drops out both see the same hidden states, so the keys and values of the others
must be the same there. Behind it they differ by design.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinrun.trace.canvas_checks import Finding
from twinrun.trace.canvas_side import CanvasSide

FAR = 1e-2
"""Relative difference of keys that no rounding makes; bfloat16 reaches 4e-3 a number."""


def check_keys(side: CanvasSide, runner: Any) -> Finding | None:
    """Run the first step that skipped something again, with the skip and without, and compare what was stored.

    Returns:
        None if nothing was skipped, no state was kept, or the keys agree.

    Cost: two forwards of a block.
    """
    step = next((s for s in side.steps if s.skipped and s.state is not None), None)
    if step is None or step.skips is None or step.skips.layer is None:
        return None
    layer = step.skips.layer
    again = runner.replay(step.state, step.commits, skip=None)
    at = [p for p, active in zip(step.positions, step.skips.active, strict=True) if active]
    if not at or again.before.slots is None or again.after.slots is None:
        return None
    places = torch.tensor(again.columns_of(at))
    both = [
        (o.slots.keys(layer)[again.row], o.slots.values(layer)[again.row])
        for o in (again.before, again.after)
    ]
    keys, values = (_apart(both[0][i][:, places], both[1][i][:, places]) for i in (0, 1))
    if keys <= FAR:
        return None
    twice = _rotated(both[1][0][:, places], *(t[at] for t in runner.rotary_tables(side.width)))
    why = ": they are rotated twice" if _apart(both[0][0][:, places], twice) <= FAR else ""
    return Finding(
        where="keys",
        sentence=f"step {step.block_step} of block {step.block} stores other keys in layer {layer} than the same step "
        f"without a skip (relative difference {keys:.2g}, values {values:.2g}){why}; first at position {at[0]}",
        side=side.who,
        step=step.step,
        block=step.block,
        block_step=step.block_step,
        position=at[0],
    )


def _apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30))


def _rotated(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys `[heads, tokens, dim]` rotated by half-split tables `[tokens, dim]`, once more."""
    half = keys.shape[-1] // 2
    turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
    return keys * cos.to(keys.device) + turned * sin.to(keys.device)
