"""Every module agrees and the scores do not: are the rows handed out those of another position?"""

from __future__ import annotations

import torch
from torch import Tensor

from twinrun.numerics.blocks import block_bounds
from twinrun.records.scores import Scores
from twinrun.verify.case import Case
from twinrun.verify.culprit import Blame

FLOOR_ULPS = 64.0


def shifted_rows(
    candidate: list[Scores],
    reference: list[Scores],
    own: list[Scores],
    case: Case,
    factor: float,
    precision: torch.dtype,
) -> Blame | None:
    """Say that the scores themselves are wrong, and by which shift they would be right; None if they agree.

    Args:
        candidate: scores on trial.
        reference: scores of the reference, one precision up.
        own: scores of the reference in its own precision; `factor` times its error is rounding.
        case: what was scored.
        factor: see `own`.
        precision: in which the candidate ran.
    """
    name = str(precision).removeprefix("torch.")
    for number, (theirs, ours, low) in enumerate(zip(candidate, reference, own, strict=True)):
        if len(theirs.positions) != len(ours.positions):
            text = f"{len(theirs.positions)} rows of scores where the reference gives {len(ours.positions)}"
            return _blame(case, number, int(ours.positions[0]), text, name)
        noise = distance(low, ours, 0)
        limit = max(
            factor * float(noise[torch.isfinite(noise)].max()), FLOOR_ULPS * torch.finfo(precision).eps * 32
        )
        wrong = (~(distance(theirs, ours, 0) <= limit)).nonzero()[:, 0]
        if not len(wrong):
            continue
        text = "every module agrees, but the scores handed out differ"
        for shift, word in ((1, "later"), (-1, "earlier")):
            there = distance(theirs, ours, shift)
            if len(there) and float((there <= limit).double().mean()) > 0.9:
                text += f"; they are those of one position {word}"
        return _blame(case, number, int(ours.positions[int(wrong[0])]), text, name)
    return None


def distance(a: Scores, b: Scores, shift: int) -> Tensor:
    """Largest difference of log-probabilities, nats, of row i of `a` and row i + shift of `b`, for all such i."""
    first, count = max(0, -shift), a.logits.num_rows - abs(shift)
    found = []
    with torch.inference_mode():
        for start, stop in block_bounds(max(count, 0), a.logits.vocab_size):
            ours = _logp(a.logits.rows(first + start, first + stop))
            theirs = _logp(b.logits.rows(first + shift + start, first + shift + stop))
            both_excluded = torch.isneginf(ours) & torch.isneginf(theirs)
            found.append((ours - theirs).abs().masked_fill(both_excluded, 0.0).amax(-1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _logp(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), dim=-1).cpu()


def _blame(case: Case, row: int, position: int, text: str, precision: str) -> Blame:
    label = case.label if len(case.rows) == 1 else f"{case.label}, row {row}"
    return Blame(
        kind="scores",
        sentence=f"{label}, position {position}: {text}",
        position=position,
        row=row,
        precision=precision,
        case=label,
    )
