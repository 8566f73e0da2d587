"""The verdict that stands beside a speed, taken on the text that is timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinrun.bench.remembered import Remembered
from twinrun.bench.settings import BenchSettings
from twinrun.verify.case import Case
from twinrun.verify.verify import verify

KEPT = (
    "verdict",
    "reason",
    "positions",
    "ratio_max",
    "ratio_rms",
    "kl_mean",
    "kl_max",
    "top1_agreement",
    "blame",
)


def judge(
    reference: Remembered, candidate: Any, ids: Sequence[int], length: int, settings: BenchSettings
) -> dict[str, Any]:
    """Judge a candidate on the prompt of `length` tokens and the tokens that follow it in the text.

    The candidate takes the prompt in one forward and the rest one by one, as when it is timed.

    Args:
        reference: the first runner of the sweep.
        candidate: anything with `score(tokens, start)`.
        ids: at least `length` and the judged tokens.
        length: prompt tokens.
        settings: `judged_positions` bounds the tokens after the prompt, `budget` is what a lossy one may cost.

    Returns:
        The numbers of the verdict and its `length`.

    Cost: one prompt's forward and at most `judged_positions` single tokens in two precisions on each side; the
        reference's are shared by all candidates of a length.
    """
    count = min(settings.new_tokens, settings.judged_positions)
    case = Case(label=f"{length:,} tokens", rows=(tuple(ids[: length + count]),), starts=(length,))
    found = verify(reference, candidate, [case], budget=settings.budget, explain=False)
    record = found.to_json()
    flips = {f"flips_{key}": record["flips"][key] for key in ("ties", "real")}
    return {**{key: record[key] for key in KEPT}, **flips, "length": length}


def of_reference(name: str, length: int) -> dict[str, Any]:
    """What stands in the place of a verdict for the side that the others are held against."""
    none = dict.fromkeys([*KEPT, "flips_ties", "flips_real"])
    return {
        **none,
        "verdict": "reference",
        "reason": f"{name} is what the others are held against",
        "length": length,
    }
