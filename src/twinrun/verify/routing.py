"""Tell a router's tie from a bug: a mixture-of-experts router on a near tie sends a token to another expert.

The effect on the logits is far beyond rounding (a clean Mixtral reached 23x) and yet no bug, so positions
after such a tie are set aside from the ratio and counted; the precision sweep, where ties are thousands of
times rarer, still judges them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinrun.records.scores import Routes, Scores

NOISE_MEDIANS = 16.0
"""A gap within this many times the median error of router logits counts as a tie. The error of one logit is spread over
about 4 medians; a choice depends on two of them on each side."""


def router_flags(sides: tuple[Scores, ...], oracle: Scores) -> tuple[Tensor, Tensor]:
    """Return (tie, flip) `[rows]`: a router of some side chose otherwise than the oracle's, inside / beyond noise.

    A choice that differs behind an earlier tie (a lower layer, the same or an earlier token) follows from
    it and is not held against the side.
    """
    rows = oracle.logits.num_rows
    tie, flip = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
    for side in sides:
        if side.routes is not None and oracle.routes is not None:
            for i in range(rows):
                row_tie, row_flip = _one_row(side.routes, oracle.routes, i)
                tie[i] |= row_tie
                flip[i] |= row_flip
    return tie, flip


def _one_row(side: Routes, oracle: Routes, i: int) -> tuple[bool, bool]:
    ours, theirs = side.experts[i].sort(-1).values, oracle.experts[i].sort(-1).values
    if ours.shape != theirs.shape:
        return False, True
    differs = (ours != theirs).any(-1)
    if not differs.any():
        return False, False
    k, logits = theirs.shape[-1], oracle.logits[i]
    top = logits.topk(min(k + 1, logits.shape[-1]), dim=-1).values
    gap = top[..., k - 1] - top[..., -1]
    noise = NOISE_MEDIANS * (side.logits[i] - logits).abs().median()
    tie = differs & (gap <= noise)
    above = torch.cat([torch.zeros_like(tie[:1]), tie.int().cummax(0).values[:-1].bool()])
    follows = above.int().cummax(1).values.bool()
    return bool(tie.any()), bool((differs & ~tie & ~follows).any())
