"""Judge sampling by one planted fault: a run that is stopped and continued with it, against a clean whole one."""

from __future__ import annotations

from typing import Any

from twinrun.faults.fault import Fault, candidate_for
from twinrun.faults.judged import Judged
from twinrun.faults.sampled import SAMPLED, SampledRun
from twinrun.models.model import Model


def judge_sampling_fault(fault: Fault, model: Model, *, family: str = "") -> Judged:
    """Plant a fault in a small sampling by a copy of `model`, and hold what was seen against the fault's site.

    Cost: four short answers, twice.
    """
    return judge_run(fault, candidate_for(fault, model), family=family)


def judge_run(fault: Fault, run: SampledRun, *, family: str = "") -> Judged:
    """The same for a run that is there.

    Cost: its sampling, twice; what is tokenised again needs a forward each.
    """
    right = run.whole()
    subject: Any = run  # a fault's runner is usually one that scores
    with fault.planted(subject):
        found = run.finding(right, run.stopped())
    named = "nothing" if found is None else found.kind
    return Judged(
        fault=fault.name,
        family=family,
        dtype=str(run.model.dtype).removeprefix("torch."),
        runner=SAMPLED,
        caught=found is not None,
        by_ratio=None,
        by_sweep=None,
        finding=None if found is None else found.sentence,
        probe="sampling",
        named=named,
        sentence="" if found is None else found.sentence,
        right=named == fault.site.kind,
    )


def sample_clean(run: SampledRun) -> tuple[str, str]:
    """Verdict and what was named without a fault, in the words of the suite: "different" is an alarm."""
    found = run.finding(run.whole(), run.stopped())
    return ("identical", "none") if found is None else ("different", found.kind)
