"""The four steps of the demo. Each returns plain JSON types; none prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from twinrun import __version__
from twinrun.bench.timing import AGAIN, PairedRatio, Timing, interleave, noise, ratio
from twinrun.cli.demo_text import Answer, Plan, Text, answer_problems
from twinrun.contrast.contrast import contrast
from twinrun.faults.fault import Fault, candidate_for
from twinrun.faults.registry import get_fault
from twinrun.models.model import Model
from twinrun.numerics.divergence import token_stats
from twinrun.records.env import environment
from twinrun.records.scores import Scores
from twinrun.records.tokens import ContrastedText
from twinrun.runners.kvcache import KVCache
from twinrun.runners.runner import ModelRunner
from twinrun.runners.score import token_texts
from twinrun.runners.singlepass import SinglePass
from twinrun.tasks.arithmetic import extract_answer, is_exact
from twinrun.verify.verdict import Verdict
from twinrun.verify.verify import verify

Tick = Callable[[str], object]
TWIN_STAGES = 4
BETA = 0.4
FAULTS = (("position-off-by-one", "scores-off-by-one"), ("value-scale-off", "logit-scale-off"))
"""Each entry is one fault to plant; where the model cannot have it, the next name."""


class Remembered:
    """A runner that is asked for the same text by several verdicts and runs it once in each precision."""

    def __init__(self, inner: ModelRunner) -> None:
        """Wrap a runner."""
        self.inner, self._seen, self._up = inner, dict[tuple[Any, ...], list[Scores]](), False

    def __getattr__(self, name: str) -> Any:
        """Everything else is the runner's own."""
        return getattr(self.inner, name)

    @contextmanager
    def raised(self) -> Iterator[torch.dtype]:
        """Run one precision up; what was scored there is kept apart."""
        with self.inner.raised() as dtype:
            self._up = True
            try:
                yield dtype
            finally:
                self._up = False

    def score_batch(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        """Score, or answer from memory."""
        key = (self._up, tuple(map(tuple, rows)), tuple(starts))
        if key not in self._seen:
            self._seen[key] = self.inner.score_batch(rows, starts)
        return self._seen[key]


def twins(model: Model, reference: Remembered, text: Text, plan: Plan, tick: Tick) -> dict[str, Any]:
    """Verdict and speed of three fast ways against one forward a token, all on one text."""
    plain = reference.inner
    fast: list[ModelRunner] = [KVCache(model, "dynamic"), KVCache(model, "static"), SinglePass(model)]
    verdicts: list[Verdict] = []
    for runner in fast:
        tick(f"{runner.dtype}: verdict on {runner.name}")
        verdicts.append(verify(reference, runner, [text.case]))
    tick(f"{plain.dtype}: timing all ways in turns")
    cost = 2 * verdicts[0].seconds["reference"] + sum(v.seconds["candidate"] for v in verdicts)
    times = _timed([plain, *fast], text, plan, cost)
    first = {
        "candidate": plain.name,
        "verdict": "reference",
        "dtype": plain.dtype,
        "ratio_max": None,
        "ratio_rms": None,
        "kl_mean": None,
        "speed": _speed(times[plain.name], noise(times)),
    }
    rows = [
        {**_lean(v), "speed": _speed(times[v.candidate], ratio(times[plain.name], times[v.candidate]))}
        for v in verdicts
    ]
    return {
        "dtype": plain.dtype,
        "repeats": times[plain.name].repeats,
        "noise": noise(times).to_json(),
        "seconds_again": times[plain.name + AGAIN].to_json(),
        "rows": [first, *rows],
    }


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
    """Plant each fault in a copy of the model and judge it; a fault is caught when the verdict is "different"."""
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
) -> dict[str, Any]:
    """Put the whole demo into one record, with the outcome in words."""
    wrong = [
        f"{t['dtype']} {row['candidate']} is different"
        for t in twins
        for row in t["rows"]
        if row["verdict"] == "different"
    ]
    wrong += [f"the planted fault {f['name']} was not caught" for f in faults if not f["caught"]]
    wrong += [] if faults else ["no fault could be planted in this model"]
    good = "Every fast path is the same model up to rounding, and every planted fault was caught."
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
        "env": environment(),
    }


def _timed(runners: list[ModelRunner], text: Text, plan: Plan, round_seconds: float) -> dict[str, Timing]:
    """Time all ways in turns. They have just run for their verdicts, so nothing is left to warm up."""
    arms = {runner.name: partial(_score_fully, runner, text) for runner in runners}
    fewest, most = plan.rounds
    rounds = min(most, max(fewest, int(plan.rounds_seconds / round_seconds)))
    return interleave(arms, repeats=rounds, warmups=0)


def _score_fully(runner: ModelRunner, text: Text) -> None:
    """Score the text down to its log-probabilities, so that no way leaves its head for later."""
    scores = runner.score(text.ids, text.start)
    with torch.inference_mode():
        token_stats(scores.logits, scores.next_ids, top_k=1)


def _speed(timing: Timing, speed_up: PairedRatio) -> dict[str, Any]:
    factors = {"median": speed_up.median, "p10": speed_up.p10, "p90": speed_up.p90}
    return {**timing.to_json(), **{f"speed_up_{key}": value for key, value in factors.items()}}


def _judge(fault: Fault, reference: Any, model: Model, text: Text) -> dict[str, Any]:
    candidate = candidate_for(fault, model)
    with fault.planted(candidate):
        verdict = verify(reference, candidate, [text.case])
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
        "verdict": _lean(verdict),
        "trace": trace if heard else None,
    }


def _lean(verdict: Verdict) -> dict[str, Any]:
    """The record without the environment, which stands once in the demo's own."""
    return {key: value for key, value in verdict.to_json().items() if key != "env"}


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
