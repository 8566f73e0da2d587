"""Judge the verifier by one planted fault: was it caught, by which witness, at which probe, and was the place named?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from twinrun.faults.fault import Fault, candidate_for
from twinrun.models.model import Model
from twinrun.verify.culprit import Blame
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One line of the fault suite.

    Attributes:
        caught: the verdict was "different".
        by_ratio, by_sweep: how far beyond its limit each witness was (above 1 convicts); None if not heard.
        finding: the finding that convicted without any number, if one did.
        probe: the case that was looked into.
        named: what blame said is wrong: kind, and module or position.
        right: whether that is the fault's site.
    """

    fault: str
    family: str
    dtype: str
    runner: str
    caught: bool
    by_ratio: float | None
    by_sweep: float | None
    finding: str | None
    probe: str
    named: str
    sentence: str
    right: bool

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return asdict(self)


def judge_fault(
    fault: Fault,
    reference: Any,
    model: Model,
    cases: Iterable[Any],
    *,
    family: str = "",
    runner: str | None = None,
) -> Judged:
    """Plant a fault on a copy of `model`, verify it against `reference`, and hold blame against the fault's site.

    Cost: one verdict and one explanation.
    """
    candidate = candidate_for(fault, model, runner)
    with fault.planted(candidate):
        verdict = verify(reference, candidate, cases)
    blame = verdict.culprit
    return Judged(
        fault=fault.name,
        family=family,
        dtype=str(model.dtype).removeprefix("torch."),
        runner=candidate.name,
        caught=not verdict.passed,
        by_ratio=ratio_share(verdict),
        by_sweep=sweep_share(verdict),
        finding=verdict.findings[0] if verdict.findings else None,
        probe="" if blame is None else blame.case,
        named="nothing" if blame is None else _named(blame),
        sentence="" if blame is None else blame.sentence,
        right=blame is not None and is_site(blame, fault, model),
    )


def is_site(blame: Blame, fault: Fault, model: Model) -> bool:
    """Whether blame names the place where the fault sits: its kind, and for modules and caches the path."""
    if blame.kind != fault.site.kind:
        return False
    if fault.site.modules is None:
        return True
    return any(
        blame.module == path or (path != "" and str(blame.module).startswith(path + "."))
        for path in fault.site.modules(model)
    )


def _named(blame: Blame) -> str:
    if blame.kind in ("module", "cache", "mask"):
        return f"{blame.kind}: {blame.module or 'behind the head'}"
    return f"{blame.kind}: position {blame.position}" if blame.position is not None else blame.kind


def ratio_share(verdict: Verdict) -> float | None:
    """How far beyond its limit the ratio is; None if it was not heard or is no number."""
    ratio = verdict.ratio
    if ratio is None or ratio.max is None or ratio.rms is None:
        return None
    return _finite(max(ratio.max / ratio.allowed_max, ratio.rms / ratio.allowed_rms))


def sweep_share(verdict: Verdict) -> float | None:
    """How far beyond its limit the precision sweep is; None if it was not heard or is no number."""
    sweep = verdict.sweep
    return None if sweep.gap is None or not sweep.allowed else _finite(sweep.gap / sweep.allowed)


def _finite(value: float) -> float | None:
    return value if value == value and value not in (float("inf"), float("-inf")) else None
