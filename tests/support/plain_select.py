"""Step selection and contrastive labels in float64 loops, as the paper writes them. Shares no code with twinrun."""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    total = math.fsum(powers)
    return [p / total for p in powers]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def label(p: Sequence[float], q: Sequence[float], alpha: float) -> dict[int, float]:
    """Weights by token id: softmax of log E - log A over the ids with E >= alpha * max E."""
    plausible = [i for i, a in enumerate(p) if a >= alpha * max(p)]
    ratio = softmax([math.log(p[i]) - math.log(q[i]) for i in plausible])
    return dict(zip(plausible, ratio, strict=True))


def plain_select(
    expert: Sequence[Sequence[float]], amateur: Sequence[Sequence[float]], beta: float, alpha: float
) -> tuple[list[float], dict[int, dict[int, float]]]:
    """KL of every row of logits, and the label of each row that is kept. Unequal widths: the ids of both."""
    shared = min(len(expert[0]), len(amateur[0]))
    values, labels = [], {}
    for t, (e, a) in enumerate(zip(expert, amateur, strict=True)):
        p, q = softmax(e[:shared]), softmax(a[:shared])
        values.append(kl(p, q))
        if values[-1] > beta:
            labels[t] = label(p, q, alpha)
    return values, labels
