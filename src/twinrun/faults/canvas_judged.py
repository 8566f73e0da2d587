"""Judge the trace of a diffusion run by one planted fault: is something found, and is it the right thing?"""

from __future__ import annotations

from typing import Any

from twinrun.faults.canvas_runners import TOKENS, build_canvas_runner, plain_side, suite_prompt
from twinrun.faults.fault import Fault, broken_copy, candidate_for
from twinrun.faults.judged import Judged
from twinrun.models.model import Model
from twinrun.trace.canvas_run import trace_canvas
from twinrun.trace.canvas_trace import CanvasTrace


def trace_fault(
    fault: Fault, model: Model, runner: str | None = None, *, tokens: int = TOKENS
) -> CanvasTrace:
    """Trace a plain run against one with the fault."""
    candidate = candidate_for(fault, model, runner)
    reference = plain_side(candidate, model)
    with fault.planted(candidate):
        return _traced(reference, candidate, model, tokens)


def judge_canvas_fault(fault: Fault, model: Model, *, family: str = "", runner: str | None = None) -> Judged:
    """Plant a fault on a copy of `model`, trace it against a plain run, and hold what was found against its site.

    Cost: two short decodes, and a few steps run again.
    """
    found = trace_fault(fault, model, runner)
    named, sentence = _named(found)
    return Judged(
        fault=fault.name,
        family=family,
        dtype=str(model.dtype).removeprefix("torch."),
        runner=runner or fault.runners[0],
        caught=not found.passed,
        by_ratio=None,
        by_sweep=None,
        finding=None if found.blame is None else found.blame.sentence,
        probe="trace",
        named=named,
        sentence=sentence,
        right=not found.passed and named == fault.site.kind,
    )


def trace_clean(model: Model, runner: str) -> CanvasTrace:
    """Trace a plain run against a runner without a fault."""
    candidate = build_canvas_runner(runner, broken_copy(model))
    return _traced(plain_side(candidate, model), candidate, model, TOKENS)


def clean_words(found: CanvasTrace) -> tuple[str, str]:
    """Verdict and what was named, in the words of the suite: "different" is an alarm."""
    if found.passed:
        return ("identical" if found.first_divergence is None else "equivalent"), "none"
    return "different", _named(found)[0]


def _traced(reference: Any, candidate: Any, model: Model, tokens: int) -> CanvasTrace:
    return trace_canvas(
        reference,
        candidate,
        suite_prompt(model),
        max_new_tokens=tokens,
        level="fingerprints",
        early_stop=False,
    )


def _named(found: CanvasTrace) -> tuple[str, str]:
    """The first thing that is wrong in itself, else where the runs part."""
    if found.blame is not None:
        return found.blame.where, found.blame.sentence
    told = found.first_divergence
    return ("none", "") if told is None else (told.kind, told.sentence)
