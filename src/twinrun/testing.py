"""Verification as one line of anyone's test suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from twinrun.errors import VerificationFailed
from twinrun.models.load import load
from twinrun.runners.recompute import Recompute
from twinrun.runners.singlepass import SinglePass
from twinrun.verify.budget import Budget
from twinrun.verify.probes import probes
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify


def assert_equivalent(
    reference: Any,
    candidate: Any,
    prompts: Iterable[Any] | None = None,
    *,
    budget: Budget | Mapping[str, float] | None = None,
) -> Verdict:
    """Fail the test unless the candidate is still the same model as the reference.

    Args:
        reference: a runner, or a model (then one plain forward a token is the reference).
        candidate: a runner or anything with `score(tokens, start)`, or a model (then a single pass over it
            is judged).
        prompts: texts, token ids or cases; None builds `twinrun.probes` from the reference's config.
        budget: what a lossy candidate may cost; None allows rounding only.

    Returns:
        The verdict, for further asserts.

    Raises:
        VerificationFailed: the verdict is "different"; the message says why and where it starts.

    Example:
        >>> m = load("builtin:amateur")
        >>> assert_equivalent(m, SinglePass(m), ["Two and two"]).verdict in ("identical", "equivalent")
        True
    """
    trusted = reference if hasattr(reference, "score") else Recompute(load(reference))
    tried = candidate if hasattr(candidate, "score") else SinglePass(load(candidate))
    if prompts is None:
        prompts = probes(trusted.model, max_tokens=512)
    verdict = verify(trusted, tried, prompts, budget=budget)
    if not verdict.passed:
        where = (
            f"\nIt starts at {verdict.blame}."
            if verdict.blame and verdict.blame not in verdict.reason
            else ""
        )
        raise VerificationFailed(
            f"{verdict.candidate} differs from {verdict.reference} on {verdict.model}: "
            f"{verdict.reason}.{where}"
        )
    return verdict
