"""What contrast labels know: at the expert's first wrong token, and where it is right but undecided."""

from __future__ import annotations

from typing import Any

from twinrun.contrast.exam import ARITHMETIC, judge_by, references
from twinrun.contrast.samples import StepSample
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.models.model import Model

BETA = 0.4


def label_facts(store: SampleStore, expert: Model) -> dict[str, Any]:
    """Counts over all answers of the samples, which must hold every step.

    A wrong answer goes wrong at the first token that is not the reference's: worked answers have one wording. There
    the label either prefers the reference's token or not. In a right answer a step is undecided if its label has two
    ids or more; there the label prefers the expert's own token or another one, which would be wrong.
    """
    held = [s for s in store.sampled() if s.refused is None]
    told = references(ARITHMETIC, [s.trajectory.prompt_id for s in held])
    is_right = judge_by(told)
    wrong: list[tuple[StepSample, int, int]] = []
    undecided: list[tuple[StepSample, int]] = []
    for each in held:
        if is_right(each.trajectory):
            own = each.trajectory.answer_ids
            undecided += [(s, own[s.step]) for s in each.steps if len(s.token_ids) > 1]
        else:
            wrong += _first_wrong(each, expert.encode(told[each.trajectory.prompt_id]))
    above = [step for each in held for step in each.steps if step.kl > BETA]
    return {
        "beta": BETA,
        "steps_kept": len(above),
        "labels_of_one_id": sum(len(s.token_ids) == 1 for s in above),
        "wrong_answers": sum(not is_right(s.trajectory) for s in held),
        "first_wrong_tokens": len(wrong),
        "of_these_above_beta": sum(s.kl > BETA for s, _, _ in wrong),
        "of_these_right_token_in_label": sum(ref in s.token_ids for s, _, ref in wrong),
        "of_these_label_prefers_right_token": sum(s.token_ids[0] == ref for s, _, ref in wrong),
        "first_wrong_tokens_by_text": _texts(wrong, expert),
        "undecided_steps_of_right_answers": len(undecided),
        "of_these_label_prefers_another_token": sum(s.token_ids[0] != own for s, own in undecided),
    }


def label_notes(facts: dict[str, Any]) -> list[str]:
    """The counts in words."""
    if not facts:
        return []
    return [
        f"labels above beta {facts['beta']:g}: {facts['labels_of_one_id']} of {facts['steps_kept']} hold one id only",
        f"first wrong tokens: {facts['first_wrong_tokens']}, {facts['of_these_above_beta']} of them above beta; the "
        f"label holds the right one at {facts['of_these_right_token_in_label']}, prefers it at "
        f"{facts['of_these_label_prefers_right_token']}",
        f"undecided steps of right answers: {facts['undecided_steps_of_right_answers']}; the label prefers another "
        f"token at {facts['of_these_label_prefers_another_token']}",
    ]


def _first_wrong(each: Sampled, reference: list[int]) -> list[tuple[StepSample, int, int]]:
    """The first step at which an answer leaves its reference, with both tokens; none if it has no label."""
    steps = {s.step: s for s in each.steps}
    pairs = zip(each.trajectory.answer_ids, reference, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None or at not in steps:
        return []
    return [(steps[at], each.trajectory.answer_ids[at], reference[at])]


def _texts(wrong: list[tuple[StepSample, int, int]], expert: Model) -> dict[str, int]:
    """How often which token stood for which, the commonest first."""
    counts: dict[str, int] = {}
    for _, own, ref in wrong:
        key = f"{expert.decode([own])!r} for {expert.decode([ref])!r}"
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:6])
