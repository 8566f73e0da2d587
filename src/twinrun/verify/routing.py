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


def router_ties(ref: Scores, cand: Scores, oracle: Scores) -> Tensor:
    """Return `[rows]` flags: up to here some router of either side chose otherwise than the oracle's, by a tie.

    A choice is a tie if the oracle's gap is inside the noise of the *reference's* router logits, so that a
    candidate cannot excuse itself by being noisy. A different choice behind a tie (a higher layer, the same
    or a later token) follows from it. Any other difference of the candidate is not excused. The reference is
    trusted: where its own choices differ, its error says nothing and the row is set aside.
    """
    tie = torch.zeros(oracle.logits.num_rows, dtype=torch.bool)
    if ref.routes is None or oracle.routes is None:
        return tie
    for i in range(len(tie)):
        truth = oracle.routes.logits[i]
        noise = NOISE_MEDIANS * float((ref.routes.logits[i] - truth).abs().median())
        by_tie, otherwise = (False, False)
        if cand.routes is not None:
            by_tie, otherwise = _one_row(cand.routes, oracle.routes, i, noise)
        tie[i] = any(_one_row(ref.routes, oracle.routes, i, noise)) or (by_tie and not otherwise)
    return tie


def _one_row(side: Routes, oracle: Routes, i: int, noise: float) -> tuple[bool, bool]:
    """Whether this side's choices for row i differ from the oracle's by a tie, and whether otherwise."""
    ours, theirs = side.experts[i].sort(-1).values, oracle.experts[i].sort(-1).values
    if ours.shape != theirs.shape:
        return False, True
    differs = (ours != theirs).any(-1)
    if not differs.any():
        return False, False
    k, logits = theirs.shape[-1], oracle.logits[i]
    top = logits.topk(min(k + 1, logits.shape[-1]), dim=-1).values
    tie = differs & (top[..., k - 1] - top[..., -1] <= noise)
    above = torch.cat([torch.zeros_like(tie[:1]), tie.int().cummax(0).values[:-1].bool()])
    follows = above.int().cummax(1).values.bool()
    return bool(tie.any()), bool((differs & ~tie & ~follows).any())
