"""Step three and four of the demo, and its record. Each returns plain JSON types; none prints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twinrun import __version__
from twinrun.bench.remembered import Remembered
from twinrun.cli.demo_text import Answer, Plan, Text, answer_problems
from twinrun.cli.demo_twins import Tick, lean
from twinrun.contrast.contrast import contrast
from twinrun.faults.fault import Fault, candidate_for
from twinrun.faults.registry import get_fault
from twinrun.models.model import Model
from twinrun.records.env import environment
from twinrun.records.tokens import ContrastedText
from twinrun.runners.score import token_texts
from twinrun.tasks.arithmetic import extract_answer, is_exact
from twinrun.verify.blame import blame
from twinrun.verify.verify import verify

BETA = 0.4
FAULTS = (("position-off-by-one", "scores-off-by-one"), ("value-scale-off", "logit-scale-off"))
"""Each entry is one fault to plant; where the model cannot have it, the next name."""


def contrasted(expert: Model, amateur: Model | None, answers: list[Answer], plan: Plan) -> dict[str, Any]:
    """Expert against amateur on the expert's answers, and whether the answers of both are right."""
    if amateur is None:
        return {"skipped": "no --amateur was given; it needs a weaker model with the same tokenizer"}
    if not answers:
        return {"skipped": "the expert has no tokenizer, or a context too short for the problems"}
    rows = [a.prompt_ids + a.answer_ids for a in answers]
    found = contrast(expert, amateur, rows, starts=[len(a.prompt_ids) for a in answers])
    own = answer_problems(amateur, plan)
    texts = [_text_record(expert, *item) for item in zip(answers, own, found, strict=True)]
    right = {who: sum(text[f"{who}_right"] for text in texts) for who in ("expert", "amateur")}
    kl = [value for text in texts for value in text["kl"]]
    chosen = sum(len(text["chosen"]) for text in texts)
    return {
        "expert": expert.name, "amateur": amateur.name, "beta": BETA, "right": right, "chosen": chosen,
        "kl_mean": sum(kl) / len(kl), "kl": kl, "texts": texts,
    }  # fmt: skip


def faults(model: Model, reference: Remembered, text: Text, tick: Tick) -> list[dict[str, Any]]:
    """Plant each fault in a copy of the model and judge it; it is caught when the verdict is "different"."""
    found = []
    for names in FAULTS:
        fault = next((f for f in map(get_fault, names) if f.applies(model) is None), None)
        if fault is not None:
            tick(f"planting {fault.name}")
            found.append(_judge(fault, reference, model, text))
    return found


def record(
    expert: Model,
    amateur: Model | None,
    text: Text,
    twins: list[dict[str, Any]],
    contrast: dict[str, Any],
    faults: list[dict[str, Any]],
    more: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Put the whole demo into one record, with the outcome in words; `more` has the steps with models of their own."""
    wrong = [
        f"{t['dtype']} {row['candidate']} is different"
        for t in [*twins, *(step["twins"] for step in more.values())]
        for row in t["rows"]
        if row["verdict"] == "different"
    ]
    ways = more["prune"]["ways"]
    wrong += [f"the answer of {way['runner']} is wrong" for way in ways if not way["is_right"]]
    wrong += [f"the planted fault {f['name']} was not caught" for f in faults if not f["caught"]]
    wrong += [] if faults else ["no fault could be planted in this model"]
    good = (
        "Every fast path is the same model up to rounding, the lossy ones are inside their budgets, and every planted "
        "fault was caught."
    )
    return {
        "kind": "demo",
        "version": __version__,
        "passed": not wrong,
        "outcome": f"Not as it should be: {'; '.join(wrong)}." if wrong else good,
        "model": _model(expert),
        "amateur": None if amateur is None else _model(amateur),
        "text": {"tokens": len(text.ids), "start": text.start, "source": text.source, "token_ids": text.ids},
        "twins": twins,
        "contrast": contrast,
        "faults": faults,
        **more,
        "env": environment(),
    }


def _judge(fault: Fault, reference: Remembered, model: Model, text: Text) -> dict[str, Any]:
    candidate = candidate_for(fault, model)
    with fault.planted(candidate):
        verdict = verify(reference, candidate, [text.case], explain=False)
        if not verdict.passed:
            culprit = blame(reference.runner, candidate, [text.case])
            verdict = replace(verdict, culprit=culprit, blame=culprit.sentence)
    heard = verdict.sweep.gap is not None
    trace = {
        "positions": verdict.table["position"],
        "gap_up": verdict.table["gap_up_max"],
        "allowed": verdict.sweep.allowed,
    }
    return {
        "name": fault.name,
        "summary": fault.summary,
        "where": fault.where,
        "caught": verdict.verdict == "different",
        "verdict": lean(verdict),
        "trace": trace if heard else None,
    }


def _text_record(expert: Model, answer: Answer, other: Answer, found: ContrastedText) -> dict[str, Any]:
    """One answer, its tokens from the first answered one on."""
    start = found.start

    def names(tops: list[tuple[int, float]] | None) -> list[tuple[str, float]]:
        pairs = tops or []
        texts = token_texts(expert, [i for i, _ in pairs]) or []
        return [(text, logprob) for text, (_, logprob) in zip(texts, pairs, strict=True)]

    return {
        "question": answer.problem.question,
        "expected": answer.problem.answer,
        "expert_text": answer.text,
        "expert_answer": extract_answer(answer.text),
        "expert_right": is_exact(answer.text, answer.problem),
        "amateur_text": other.text,
        "amateur_answer": extract_answer(other.text),
        "amateur_right": is_exact(other.text, answer.problem),
        "start": start,
        "token_ids": found.token_ids[start:],
        "tokens": (found.tokens or [])[start:],
        "kl": found.kl[start:],
        "chosen": [i - start for i in found.chosen(BETA)],
        "expert_top": [names(tops) for tops in found.expert_top[start:]],
        "amateur_top": [names(tops) for tops in found.amateur_top[start:]],
    }


def _model(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "vocab_size": model.vocab_size,
        "context": model.max_context,
    }
