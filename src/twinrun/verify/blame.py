"""Find the first module whose inputs agree within noise and whose outputs do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from twinrun.errors import ConfigError
from twinrun.numerics.precision import one_up, parse_dtype
from twinrun.records.scores import Scores
from twinrun.verify.activations import Activations, By, modules_by
from twinrun.verify.case import Case, as_cases
from twinrun.verify.culprit import Blame
from twinrun.verify.gaps import DEPLOYED_FACTOR, Gap, Noise, comparable, gaps
from twinrun.verify.glance import glance
from twinrun.verify.handed import findings
from twinrun.verify.pinpoint import Scene, pinpoint
from twinrun.verify.recorder import recording, slides
from twinrun.verify.shifted import shifted_rows

SCORES_FACTOR = 64.0
"""The sweep's factor, for the scores themselves."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """One side's fingerprints and scores of one case."""

    activations: Activations
    scores: list[Scores]


def blame(
    reference: Any,
    candidate: Any,
    prompts: Iterable[Any],
    *,
    by: By = "module",
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Blame:
    """Name the first place where the candidate parts from the reference: step, position, layer, module.

    Both sides score the same tokens. Hooks on every module fingerprint inputs and outputs at absolute positions.
    A first look in the deployed precision (`twinrun.verify.glance`) may settle it by one layer alone. Else
    what the models are handed (ids, positions, masks, cache lengths) is compared first. Then, one precision up
    and, if nothing differs there, in the deployed precision, the first module is sought, in order of position and
    execution, whose inputs agree within noise and whose outputs do not. Noise is the reference's own error at that
    module. A suspect that reads a cache is tried once more on the reference's inputs ("shadow"): if it is right
    there, the cache is to blame.

    Source: first divergence as in SGLang's comparator and AWS Neuron's capture and compare; shadow mode as in
    `torch.ao.ns._numeric_suite_fx`; noise from the two witnesses of `docs/numerics.md`.

    Args:
        reference: trusted side; it and the candidate need `module` (their `nn.Module`), `score` and `raised`.
        candidate: side on trial.
        prompts: texts, token ids or cases; the first in which the sides part is explained.
        by: how fine to look: "module", decoder "layer", or "step" (the logits alone).
        on_progress: called between passes with (done, total, what).

    Returns:
        A `Blame`; its kind is "none" where nothing differs beyond rounding.

    Raises:
        ConfigError: nothing to try, or a reference that cannot run one precision up.

    Cost: one pass of each side over the prompt and a few calls of one layer, where the first look settles it. Else
    three or four passes over the case more, most of them one precision up; 136 bytes a position for each recorded
    tensor of each pass, whatever the width of the model.

    Example:
        >>> m = load("builtin:amateur")
        >>> blame(Recompute(m), KVCache(m), prompts=["Two and two"]).kind
        'none'
    """
    check_by(by)
    cases = as_cases(prompts, reference, candidate)
    nothing = Blame(kind="none", sentence="no module differs beyond rounding")
    for number, case in enumerate(cases):
        if on_progress is not None:
            on_progress(number, len(cases), f"looking into {case.label}")
        found = _look(reference, candidate, case, by)
        if found.kind != "none":
            return found
        nothing = found
    return nothing


def check_by(by: str) -> None:
    """Refuse a word that is no way of looking."""
    if by not in ("module", "layer", "step"):
        raise ConfigError(f"by must be 'module', 'layer' or 'step', got {by!r}")


def _look(reference: Any, candidate: Any, case: Case, by: By) -> Blame:
    for who, side in (("reference", reference), ("candidate", candidate)):
        if getattr(side, "module", None) is None:
            return _not_comparable(case, f"the {who} ({type(side).__name__}) shows no module to look into")
    own, other = parse_dtype(reference.dtype), parse_dtype(candidate.dtype)
    wanted = modules_by(by)
    mixed = own != other
    settled = None if mixed else glance(reference, candidate, case, by)
    if settled is not None:
        return settled
    with nullcontext() if mixed else reference.raised():
        high = _alone(reference, case, wanted)
    with reference.cast(other) if mixed else nullcontext():
        low = _alone(reference, case, wanted)
    found = None
    for up in (False,) if mixed or candidate.can_raise() is not None else (True, False):
        with candidate.raised() if up else nullcontext():
            tried = _together(candidate, case, wanted)
        reason = comparable(high.activations, tried.activations)
        if reason is not None:
            return _not_comparable(case, reason)
        scene = _scene(reference, candidate, case, (low, high, tried), other, up=up)
        found = pinpoint(scene)
        if found.kind != "none":
            return found
        shrink = torch.finfo(one_up(other)).eps / torch.finfo(other).eps if up else 1.0
        factor = SCORES_FACTOR * shrink if up else DEPLOYED_FACTOR
        shifted = shifted_rows(tried.scores, high.scores, low.scores, case, factor, scene.precision)
        if shifted is not None:
            return shifted
    assert found is not None
    return found


def _scene(
    reference: Any,
    candidate: Any,
    case: Case,
    taken: tuple[_Taken, _Taken, _Taken],
    low: torch.dtype,
    *,
    up: bool,
) -> Scene:
    ours, truth, tried = (t.activations for t in taken)
    noise = Noise.one_up(low) if up else Noise.deployed(low)
    compared: list[Gap] = []
    for i in range(len(case.rows)):
        compared += gaps(ours, truth, tried, i, noise)
    return Scene(
        reference=reference,
        candidate=candidate,
        case=case,
        handed=findings(truth, tried),
        gaps=compared,
        tried=tried,
        raised=up,
        precision=one_up(low) if up else low,
    )


def _alone(side: Any, case: Case, wanted: Callable[[str], bool]) -> _Taken:
    """Score each row by itself: nothing of a batch can leak into the trusted side."""
    whole: Activations | None = None
    scores: list[Scores] = []
    for row, start in zip(case.rows, case.starts, strict=True):
        with recording(side.module, [row], wanted, slides=slides(side)) as found:
            scores += side.score_batch([list(row)], [start])
        if whole is None:
            whole = found
        else:
            whole.rows += found.rows
            whole.widths = {k: v if whole.widths.get(k, v) == v else -1 for k, v in found.widths.items()}
    assert whole is not None
    return _Taken(whole, scores)


def _together(side: Any, case: Case, wanted: Callable[[str], bool]) -> _Taken:
    with recording(side.module, case.rows, wanted, slides=slides(side)) as found:
        scores = side.score_batch([list(row) for row in case.rows], list(case.starts))
    if not found.order and len(case.rows) > 1:  # it runs rows one by one
        return _alone(side, case, wanted)
    return _Taken(found, scores)


def _not_comparable(case: Case, reason: str) -> Blame:
    return Blame(kind="not comparable", sentence=f"{case.label}: not comparable: {reason}", case=case.label)
