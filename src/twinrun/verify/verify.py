"""Run both sides over the cases, each in its own precision and one up, and hand what came out to the judge."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor

from twinrun.errors import ConfigError, TwinrunError
from twinrun.numerics.precision import one_up, parse_dtype
from twinrun.records.scores import Scores
from twinrun.verify.blame import blame
from twinrun.verify.budget import Budget
from twinrun.verify.case import Case, as_cases
from twinrun.verify.evidence import Evidence
from twinrun.verify.judge import judge
from twinrun.verify.verdict import Verdict

Progress = Callable[[int, int, str], None]
"""Called with (passes done, passes in all, what is being run)."""


def verify(
    reference: Any,
    candidate: Any,
    prompts: Iterable[Any],
    *,
    budget: Budget | Mapping[str, float] | None = None,
    sweep: bool = True,
    explain: bool = True,
    on_progress: Progress | None = None,
) -> Verdict:
    """Say whether the candidate is still the same model as the reference: identical, equivalent, lossy or different.

    Both sides score the same tokens (teacher forcing). Alignment is proved first. Then two witnesses are
    heard: the candidate's error over the reference's own, both against the oracle (the reference one
    precision up), and both sides against each other one precision up. Either convicts.

    Source: the ratio is FlashAttention's rule (tests/test_flash_attn.py: worst error at most twice the
    same-precision baseline's); the sweep is `docs/numerics.md`. KL statistics follow llama.cpp's
    llama-perplexity.

    Args:
        reference: the trusted runner. Must be able to run one precision up (every twinrun runner on
            ordinary weights).
        candidate: the runner on trial: anything with `score(tokens, start)`.
        prompts: texts, lists of token ids, or cases; `twinrun.probes(model)` builds good ones.
        budget: what a lossy candidate may cost, for example `{"kl": 0.01, "top1": 0.98}`.
        sweep: hear the second witness. Off saves one forward pass of the candidate and finds fewer bugs.
        explain: where the verdict is "different", look into the first case that stands out and name the module
            (`twinrun.blame`; `Verdict.culprit`). Both sides need `module` for that.
        on_progress: called between passes.

    Returns:
        A `Verdict`: a record that also explains itself in words.

    Raises:
        ConfigError: nothing to try, tokenizers that disagree, or a reference that cannot serve as the oracle.

    Differs from FlashAttention's rule: log-probabilities instead of outputs, a second bound on the root
    mean square, a floor of a few ulp, and the sweep, without which half of all small bugs hide below
    bfloat16 noise.

    Cost: each side runs twice, once in its own precision and once one up (of the recomputing reference half of the
        forwards, and one cast of the weights where both sides share them); memory for one case's hidden
        states four times. An explanation adds three or four passes over one case.

    Example:
        >>> m = load("builtin:amateur")
        >>> verify(Recompute(m), SinglePass(m), prompts=["Two and two"]).passed
        True
    """
    allowed = Budget.of(budget)
    cases = as_cases(prompts, reference, candidate)
    low = parse_dtype(_dtype_of(reference))
    reason = _why_not_raised(reference)
    if reason is not None:
        raise ConfigError(
            f"the reference cannot serve as the oracle: {reason}; put a plain runner on ordinary "
            "weights first"
        )
    evidence = Evidence(why_no_sweep=_why_no_sweep(reference, candidate, sweep))
    passes = 3 if evidence.why_no_sweep else 4
    evidence.awaited = {case.same_before[0] for case in cases if case.same_before}
    for number, case in enumerate(cases):
        tick = _ticker(on_progress, number * passes, len(cases) * passes, case.label)
        _run_case(evidence, reference, candidate, case, tick)
    if on_progress is not None:
        on_progress(len(cases) * passes, len(cases) * passes, "done")
    verdict = judge(evidence, reference, candidate, allowed, low, one_up(low))
    return _explained(verdict, cases, reference, candidate) if explain and not verdict.passed else verdict


def _run_case(
    evidence: Evidence, reference: Any, candidate: Any, case: Case, tick: Callable[[int, str], None]
) -> None:
    """Score one case on both sides, low and one precision up, and add it to the evidence."""
    tick(0, "reference")
    ref = _timed(evidence, "reference", reference, case)
    tick(1, "candidate")
    cand = _timed(evidence, "candidate", candidate, case)
    with ExitStack() as up_block:
        tick(2, "reference, one precision up")
        oracle = _timed(evidence, "oracle", reference, case, up_block)
        if not _one_module(reference, candidate):
            up_block.close()
        up = None
        if evidence.why_no_sweep is None:
            tick(3, "candidate, one precision up")
            up = _raised_scores(evidence, candidate, case)
    evidence.add(case, ref, cand, oracle, up)


def _explained(verdict: Verdict, cases: list[Case], reference: Any, candidate: Any) -> Verdict:
    """Look into the case that stands out; a side that cannot be looked into keeps the verdict as it is."""
    odd = [c for c in cases if re.match(rf"{re.escape(c.label)}[:,]", verdict.blame or "")]
    if not odd or not all(hasattr(side, "module") for side in (reference, candidate)):
        return verdict
    try:
        culprit = blame(reference, candidate, odd[:1])
    except (TwinrunError, RuntimeError):
        return verdict
    return replace(verdict, culprit=culprit, blame=culprit.sentence if culprit.found else verdict.blame)


def _dtype_of(side: Any) -> Any:
    return getattr(side, "dtype", "float32")


def _why_no_sweep(reference: Any, candidate: Any, wanted: bool) -> str | None:
    if not wanted:
        return "it was switched off"
    if str(_dtype_of(reference)) != str(_dtype_of(candidate)):
        return f"the sides run in different precisions ({_dtype_of(reference)} and {_dtype_of(candidate)})"
    return _why_not_raised(candidate)


def _why_not_raised(side: Any) -> str | None:
    """None if a side can run one precision up, else the reason. `can_raise` is optional, `raised` is not."""
    if not hasattr(side, "raised"):
        return f"{type(side).__name__} has no raised()"
    reason: str | None = side.can_raise() if hasattr(side, "can_raise") else None
    return reason


def _ticker(on_progress: Progress | None, base: int, total: int, label: str) -> Callable[[int, str], None]:
    def tick(index: int, what: str) -> None:
        if on_progress is not None:
            on_progress(base + index, total, f"{label}: {what}")

    return tick


def _one_module(reference: Any, candidate: Any) -> bool:
    """Whether both sides run the same weights, which are then cast up once for the two of them."""
    return getattr(reference, "module", None) is getattr(candidate, "module", reference)


def _timed(
    evidence: Evidence, who: str, side: Any, case: Case, up_block: ExitStack | None = None
) -> list[Scores]:
    """Score a case and take the time; with `up_block`, one precision up until that closes, the casts counted."""
    began = time.perf_counter()
    if up_block is not None:
        up_block.enter_context(side.raised())
    scores = score_case(side, case)
    evidence.seconds[who] += time.perf_counter() - began
    evidence.paths[who] = scores[0].path
    return scores


def score_case(side: Any, case: Case) -> list[Scores]:
    """Score all rows of a case, together if the side can, else one by one."""
    if hasattr(side, "score_batch"):
        found = side.score_batch(case.rows, case.starts)
    else:
        found = [side.score(list(row), start) for row, start in zip(case.rows, case.starts, strict=True)]
    pairs = zip(found, case.rows, case.starts, strict=True)
    return [Scores.of_logits(row, start, s) if isinstance(s, Tensor) else s for s, row, start in pairs]


def _raised_scores(evidence: Evidence, candidate: Any, case: Case) -> list[Scores] | None:
    """Score the candidate one precision up; a side that cannot after all says why and loses only this witness."""
    try:
        with ExitStack() as up_block:
            return _timed(evidence, "candidate_up", candidate, case, up_block)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        evidence.why_no_sweep = f"the candidate failed one precision up: {' '.join(str(error).split())[:160]}"
        return None
