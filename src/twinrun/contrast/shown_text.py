"""One answer of a folder of samples, as its page shows it: tokens, KL, kept steps with labels, alternatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from twinrun.contrast.samples import StepSample
from twinrun.contrast.store import Sampled
from twinrun.models.model import Model
from twinrun.records.tokens import ContrastedText
from twinrun.runners.score import token_texts

Pair = tuple[Model, Model]


def shown_text(
    sampled: Sampled, said: ContrastedText | None, models: Pair | None, known: Mapping[int, str]
) -> dict[str, Any]:
    """Return the record of one answer.

    Args:
        sampled: the answer, not a refused one.
        said: what both models say of prompt and answer; None where they are not here.
        models: expert and amateur, or None.
        known: texts of ids, for want of a tokenizer.
    """
    row = sampled.trajectory
    own = None if models is None else token_texts(models[0], row.answer_ids)
    texts = own or [known.get(i, f"#{i}") for i in row.answer_ids]
    start = len(row.prompt_ids)
    return {
        "prompt_id": row.prompt_id,
        "question": row.question,
        "answer": row.answer,
        "finished": row.finished,
        "start": start,
        "token_ids": list(row.answer_ids),
        "tokens": texts,
        "unnamed": 0 if own else sum(i not in known for i in row.answer_ids),
        "kl": list(row.kl) or [None] * len(row.answer_ids),
        "chosen": [step.step for step in sampled.steps],
        "labels": {step.step: _label(step) for step in sampled.steps},
        **{
            who: None if said is None else _alternatives(models, tops[start:])
            for who, tops in (
                ("expert", said.expert_top if said else []),
                ("amateur", said.amateur_top if said else []),
            )
        },
    }


def _label(step: StepSample) -> list[tuple[str, float]]:
    texts = step.tokens or tuple(f"#{i}" for i in step.token_ids)
    return list(zip(texts, step.weights, strict=True))


def _alternatives(
    models: Pair | None, tops: Sequence[list[tuple[int, float]] | None]
) -> list[list[tuple[str, float]]]:
    """(text, probability) of the likeliest ids at each answer token."""
    found = []
    for pairs in tops:
        ids = [i for i, _ in pairs or ()]
        texts = (token_texts(models[0], ids) if models else None) or [f"#{i}" for i in ids]
        found.append([(text, exp(p)) for text, (_, p) in zip(texts, pairs or (), strict=True)])
    return found
