"""What the demo runs on: held-out problems, a model's own answers to them, and one text made of both."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

import torch

from twinrun.models.model import Model
from twinrun.runners.kvcache import KVCache
from twinrun.tasks.arithmetic import Problem, problem
from twinrun.verify.case import Case

SEED = 2026
TEXT_SECONDS = 10.0
"""Estimated time of one sequential run, to which the text is cut; a small model stays far below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to do. `rounds_seconds` is the time for timed rounds of one precision."""

    problems: int = 6
    quick: bool = False
    text_tokens: int = 200
    new_tokens: int = 110

    @property
    def rounds_seconds(self) -> float:
        """Time to spend on timed rounds of one precision; a slow model gets the fewest rounds instead."""
        return 0.0 if self.quick else 8.0

    @property
    def rounds(self) -> tuple[int, int]:
        """Fewest and most timed rounds."""
        return (2, 2) if self.quick else (3, 10)

    def at_pace(self, forward_seconds: float, *, needs_all: bool) -> Plan:
        """Cut text and answers for a slow model, and the problems if only the text needs them."""
        most = 96 if self.quick else self.text_tokens
        tokens = min(most, max(24, int(TEXT_SECONDS / forward_seconds)))
        new = min(48 if self.quick else self.new_tokens, max(12, int(TEXT_SECONDS / forward_seconds)))
        return replace(
            self,
            text_tokens=tokens,
            new_tokens=new,
            problems=self.problems if needs_all else min(self.problems, 3),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One problem and what a model said."""

    problem: Problem
    prompt_ids: list[int]
    answer_ids: list[int]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Tokens that all ways score; the first `start` are prompt."""

    ids: list[int]
    start: int
    source: str

    @property
    def case(self) -> Case:
        """The text as one case for `verify`."""
        return Case(label="text", rows=(tuple(self.ids),), starts=(self.start,))


def pace(model: Model) -> float:
    """Seconds of one forward over 96 tokens, the second of two."""
    ids = torch.arange(96, device=model.device)[None] % model.vocab_size
    with torch.inference_mode():
        for _ in range(2):
            began = time.perf_counter()
            model.model(input_ids=ids, use_cache=False)
            seconds = time.perf_counter() - began
    return max(seconds, 1e-6)


def answer_problems(model: Model, plan: Plan) -> list[Answer]:
    """Let the model answer held-out problems greedily, all in one batch; none without a tokenizer."""
    if model.tokenizer is None:
        return []
    asked = [problem(i, seed=SEED, split="heldout") for i in range(plan.problems)]
    prompts = [_prompt(model, p.question) for p in asked]
    room = (model.max_context or 1_000_000) - max(map(len, prompts))
    if room < 1:
        return []
    run = KVCache(model).generate(prompts, min(plan.new_tokens, room))
    texts = run.texts or [""] * len(asked)
    return [
        Answer(problem=p, prompt_ids=prompt, answer_ids=ids, text=text)
        for p, prompt, ids, text in zip(asked, prompts, run.tokens, texts, strict=True)
    ]


def choose_text(model: Model, answers: list[Answer], plan: Plan) -> Text:
    """Join problems and answers up to the plan's length; random ids where the model has no tokenizer."""
    limit = min(plan.text_tokens, model.max_context or plan.text_tokens)
    ids = [i for answer in answers for i in (*answer.prompt_ids, *answer.answer_ids)][:limit]
    if not answers:
        pick = random.Random(SEED)
        ids = [pick.randrange(model.vocab_size) for _ in range(limit)]
        return Text(ids=ids, start=max(1, limit // 4), source="random token ids, for want of a tokenizer")
    start = min(len(answers[0].prompt_ids), max(1, len(ids) // 2))
    return Text(ids=ids, start=start, source="held-out problems with the model's own answers")


def _prompt(model: Model, question: str) -> list[int]:
    """Use the chat template where there is one."""
    if getattr(model.tokenizer, "chat_template", None) is None:
        return model.encode(question + "\n")
    return model.chat(question)
