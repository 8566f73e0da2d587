"""How far the reference's own rounding moves the hidden states of each layer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from twinrun.numerics.fingerprint import difference
from twinrun.verify.activations import Slot
from twinrun.verify.case import Case
from twinrun.verify.recorder import recording
from twinrun.verify.watch import token_embedding


def layer_noise(side: Any, case: Case, count: int) -> list[float | None]:
    """Largest relative error of the embedding and of each decoder layer of `side` against itself one precision up.

    Args:
        side: a runner with `module` and `raised`.
        case: one row.
        count: number of layers plus one.

    Returns:
        One number a layer, the embedding first; None where a layer was not seen.

    Cost: two passes over the case, one of them raised.
    """
    core = side.module
    embedding = token_embedding(core)
    parts = [embedding, *side.model.layout.layers]
    names = {part: name for name, part in core.named_modules()}
    wanted = [names.get(part) for part in parts][:count]
    rows, start = case.rows[:1], case.starts[0]
    found = []
    for up in (False, True):
        with side.raised() if up else nullcontext(), recording(core, rows, wanted.__contains__) as run:
            side.score(list(rows[0]), start)
        found.append(run.rows[0].prints)
    low, high = found
    noise: list[float | None] = []
    for name in wanted:
        slot = Slot(name or "", False, 0)
        if name is None or slot not in low or slot not in high:
            noise.append(None)
            continue
        seen = ~torch.isnan(high[slot][:, 0])
        worst = float(difference(low[slot][seen], high[slot][seen]).max())
        noise.append(worst if worst < float("inf") else None)
    return noise
