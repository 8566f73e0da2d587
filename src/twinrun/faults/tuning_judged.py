"""Judge the check of contrastive training by one planted fault: would training begin, and what is wrong with it?"""

from __future__ import annotations

from twinrun.faults.fault import Fault, candidate_for
from twinrun.faults.judged import Judged, ratio_share, sweep_share
from twinrun.faults.tuned import TUNED, TunedBatch
from twinrun.models.model import Model
from twinrun.verify.verdict import Verdict


def judge_tuning_fault(fault: Fault, model: Model, *, family: str = "") -> Judged:
    """Plant a fault in the training forward of a copy of `model`, and hold the check's answer against its site.

    Cost: five verdicts on short texts.
    """
    batch = candidate_for(fault, model)
    with fault.planted(batch):
        verdict = batch.together()
        named = _named(verdict, batch)
    return Judged(
        fault=fault.name,
        family=family,
        dtype=str(model.dtype).removeprefix("torch."),
        runner=TUNED,
        caught=not verdict.passed,
        by_ratio=ratio_share(verdict),
        by_sweep=sweep_share(verdict),
        finding=verdict.findings[0] if verdict.findings else None,
        probe="training",
        named=named,
        sentence="" if verdict.passed else verdict.reason,
        right=named == fault.site.kind,
    )


def tune_clean(model: Model) -> tuple[str, str]:
    """Verdict and what was named without a fault, in the words of the suite: "different" is an alarm."""
    batch = TunedBatch(model)
    verdict = batch.together()
    named = _named(verdict, batch)
    return verdict.verdict, "none" if named == "nothing" else named


def _named(verdict: Verdict, batch: TunedBatch) -> str:
    """Right alone and wrong in a batch: the model is what it was, the rows read of the batch are not those tuned."""
    if verdict.passed:
        return "nothing"
    return "scores" if all(each.passed for each in batch.alone()) else "module"
