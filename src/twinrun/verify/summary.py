"""Numbers of a verdict: KL percentiles, probability changes, agreement; by case and by position."""

from __future__ import annotations

import math
from typing import Any

import torch

from twinrun.verify.measure import Measured
from twinrun.verify.witness import Ratio

QUANTILES = {"kl_p999": 0.999, "kl_p99": 0.99, "kl_p95": 0.95, "kl_p50": 0.5}
COLUMNS = (
    "position",
    "kl",
    "err_ref_max",
    "err_cand_max",
    "gap_up_max",
    "top1_ref",
    "top1_cand",
    "margin",
    "dp",
)
NAMES = ("kl_mean", "kl_max", *QUANTILES, "dp_rms", "top1_agreement", "top1_stderr")


def overall(rows: list[Measured]) -> dict[str, float | None]:
    """Return the statistics of all positions; None for each when there are none."""
    if not rows:
        return dict.fromkeys(NAMES)
    kl = torch.cat([m.kl for m in rows])
    dp = torch.cat([m.dp for m in rows])
    dp = dp[~torch.isnan(dp)]
    same = torch.cat([m.top1_ref == m.top1_cand for m in rows]).double()
    share = float(same.mean())
    return {
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        **{name: float(torch.quantile(kl, q)) for name, q in QUANTILES.items()},
        "dp_rms": float(dp.square().mean().sqrt()) if len(dp) else None,
        "top1_agreement": share,
        "top1_stderr": math.sqrt(share * (1 - share) / len(same)),
    }


def by_case(labels: list[str], rows: list[Measured], ratio: Ratio | None) -> list[dict[str, Any]]:
    """Return one entry a row of a case."""
    floor = ratio.floor_max if ratio else 0.0
    return [
        {
            "case": label,
            "positions": len(m),
            "ratio_max": float(m.err_cand_max.max()) / max(float(m.err_ref_max.max()), floor, 1e-300),
            "gap_up_max": float(m.gap_up_max.max()),
            "kl_max": float(m.kl.max()),
            "flips": int((m.top1_ref != m.top1_cand).sum()),
            "router_ties": int(m.router_tie.sum()),
        }
        for label, m in zip(labels, rows, strict=True)
    ]


def by_position(labels: list[str], rows: list[Measured]) -> dict[str, list[Any]]:
    """Return one list a column, one entry a position."""
    table: dict[str, list[Any]] = {
        "case": [label for label, m in zip(labels, rows, strict=True) for _ in range(len(m))]
    }
    for name in (*COLUMNS, "router_tie"):
        table[name] = [value for m in rows for value in getattr(m, name).tolist()]
    return table


def finite_or_none(value: Any) -> Any:
    """Replace NaN and Inf by None, in nested dicts and lists: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
