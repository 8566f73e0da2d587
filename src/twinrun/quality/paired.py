"""Is one side better than another on the same items? Differences with intervals, and an exact sign test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from twinrun.errors import ShapeError

RESAMPLES = 10_000
LEVEL = 0.95


def interval(values: Sequence[float], strata: Sequence[object], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean: percentiles of bootstrap samples that are drawn within each stratum.

    Values that are all equal have an interval of no width: this says nothing about items that were not drawn.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals).

    Raises:
        ShapeError: no values, or not one stratum a value.

    Example:
        >>> interval([0.0, 0.0, 1.0, 1.0], [1, 1, 1, 1])
        (0.0, 1.0)
    """
    if not values or len(values) != len(strata):
        raise ShapeError(
            f"{len(values)} values with {len(strata)} strata; give one stratum a value, and a value"
        )
    rng = np.random.default_rng(seed)
    sums = np.zeros(RESAMPLES)
    for stratum in dict.fromkeys(strata):
        own = np.array([v for v, s in zip(values, strata, strict=True) if s == stratum], dtype=np.float64)
        drawn = rng.integers(0, len(own), size=(RESAMPLES, len(own)))
        sums += own[drawn].sum(axis=1)
    low, high = np.quantile(sums / len(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired(a: Sequence[float], b: Sequence[float], strata: Sequence[object], seed: int = 0) -> dict[str, Any]:
    """How much more `a` is worth than `b` on the same items.

    Args:
        a: scores of one side, 0 to 1.
        b: scores of the other, in the same order.
        strata: what each item belongs to (task and length).
        seed: of the bootstrap.

    Returns:
        The mean difference with its 95 % interval, on how many items `a` is better, worse and the same, and the p of
        the exact sign test. `is_clear`: the interval leaves out 0.

    Raises:
        ShapeError: unequal numbers of scores, or none.

    Example:
        >>> found = paired([1.0] * 8, [0.0] * 8, [0] * 8)
        >>> found["difference"], found["better"], found["sign_p"]
        (1.0, 8, 0.0078125)
    """
    if len(a) != len(b):
        raise ShapeError(f"{len(a)} scores against {len(b)}; compare two sides on the same items")
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    low, high = interval(gaps, strata, seed)
    better, worse = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    return {
        "items": len(gaps),
        "score_a": math.fsum(a) / len(a),
        "score_b": math.fsum(b) / len(b),
        "difference": math.fsum(gaps) / len(gaps),
        "low": low,
        "high": high,
        "is_clear": low > 0 or high < 0,
        "better": better,
        "worse": worse,
        "same": len(gaps) - better - worse,
        "sign_p": sign_p(better, worse),
    }


def sign_p(better: int, worse: int) -> float:
    """Two-sided p of the exact sign test; 1 where nothing differs.

    Example:
        >>> sign_p(5, 0), sign_p(0, 0)
        (0.0625, 1.0)
    """
    count = better + worse
    tail = sum(math.comb(count, k) for k in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**count))
