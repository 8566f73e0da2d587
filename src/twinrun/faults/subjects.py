"""What faults are planted in that are no runners of a causal model: decodings of a canvas, trainings, samplings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twinrun.faults.canvas_judged import clean_words, judge_canvas_fault, trace_clean
from twinrun.faults.canvas_runners import CANVAS_RUNNERS, build_canvas_runner
from twinrun.faults.fault import Way
from twinrun.faults.judged import Judged
from twinrun.faults.sampled import SAMPLED, SampledRun
from twinrun.faults.sampling_judged import judge_sampling_fault, sample_clean
from twinrun.faults.trainee import TRAINEE, Trainee
from twinrun.faults.training_judged import judge_training_fault, train_clean
from twinrun.faults.tuned import TUNED, TunedBatch
from twinrun.faults.tuning_judged import judge_tuning_fault, tune_clean
from twinrun.models.model import Model

JUDGES: dict[Way, Callable[..., Judged]] = {
    "diffusion": judge_canvas_fault,
    "training": judge_training_fault,
    "sampling": judge_sampling_fault,
    "tuning": judge_tuning_fault,
}
"""Who judges a fault of each way, but the causal one, which verdict and blame judge."""
CLEAN: dict[str, Callable[[Model], tuple[str, str]]] = {
    TRAINEE: train_clean,
    SAMPLED: lambda model: sample_clean(SampledRun.small(model)),
    TUNED: tune_clean,
}
"""Verdict and what was named of each subject without a fault."""


def build_subject(way: Way, name: str, model: Model) -> Any:
    """Build what a fault of `way` is planted in, on a copy that is its own."""
    if way == "diffusion":
        return build_canvas_runner(name, model)
    if way == "training":
        return Trainee(model)
    return SampledRun.small(model) if way == "sampling" else TunedBatch(model)


def clean_subject(model: Model, name: str) -> tuple[str, str] | None:
    """Verdict and what was named of a subject without a fault; None for a runner, which verdict and blame judge."""
    if name in CANVAS_RUNNERS:
        return clean_words(trace_clean(model, name))
    return CLEAN[name](model) if name in CLEAN else None
