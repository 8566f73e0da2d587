"""Judge the training check by one planted fault: did the training end, and was the right thing named?"""

from __future__ import annotations

from twinrun.errors import TrainingError
from twinrun.faults.fault import Fault, candidate_for
from twinrun.faults.judged import Judged
from twinrun.faults.trainee import TRAINEE, Trainee
from twinrun.models.model import Model


def judge_training_fault(
    fault: Fault, model: Model, *, family: str = "", runner: str | None = None
) -> Judged:
    """Plant a fault in a small training on a copy of `model`, and hold what ended it against the fault's site.

    Cost: saliency of eight short samples and at most four steps.
    """
    trainee = candidate_for(fault, model, runner)
    with fault.planted(trainee):
        found = trainee.finding()
    named = _named(found)
    return Judged(
        fault=fault.name,
        family=family,
        dtype=str(model.dtype).removeprefix("torch."),
        runner=TRAINEE,
        caught=found is not None,
        by_ratio=None,
        by_sweep=None,
        finding=None if found is None else str(found),
        probe="training",
        named=named,
        sentence="" if found is None else str(found),
        right=named == fault.site.kind,
    )


def train_clean(model: Model) -> tuple[str, str]:
    """Verdict and what was named without a fault, in the words of the suite: "different" is an alarm."""
    found = Trainee(model).finding()
    return ("identical", "none") if found is None else ("different", _named(found))


def _named(found: TrainingError | None) -> str:
    """The kind of site that the message is about."""
    if found is None:
        return "nothing"
    return "targets" if "target" in str(found).partition(" handed")[0] else "loss terms"
