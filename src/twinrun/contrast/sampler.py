"""One batch of problems: the expert answers, then one forward of each model over prompt and answer gives all steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twinrun.contrast.problems import Question
from twinrun.contrast.samples import StepSample, Trajectory
from twinrun.contrast.select import Selected, select
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import Sampled
from twinrun.errors import ConfigError, NonFiniteError
from twinrun.models.model import Model
from twinrun.models.tokenizers import check_same_tokens
from twinrun.runners.kvcache import KVCache
from twinrun.runners.singlepass import SinglePass


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the models get it: token ids, made once."""

    question: Question
    index: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    ids: tuple[int, ...]
    finished: bool


class Sampler:
    """Samples batches of prompts with one pair of models.

    Args:
        expert: generates the answers, and is what will be trained.
        amateur: judged beside it; the same token ids.
        settings: how answers are made and steps chosen.

    Raises:
        ConfigError: tokenizers that disagree (the first id is named).

    Example:
        >>> from twinrun.models.load import load
        >>> sampler = Sampler(load("builtin:expert"), load("builtin:amateur"), SampleSettings(max_new_tokens=4))
        >>> question = Question(prompt_id="a", text="Tom has 3 apples and buys 4. How many?", where="line 1")
        >>> len(sampler.sample([sampler.prompt(question, 0)])[0].trajectory.answer_ids)
        4
    """

    def __init__(self, expert: Model, amateur: Model, settings: SampleSettings) -> None:
        """Compare the tokenizers; nothing runs yet."""
        check_same_tokens(expert, amateur)
        self.expert, self.amateur, self.settings = expert, amateur, settings
        self._generate = KVCache(expert)
        self._sides = SinglePass(expert), SinglePass(amateur)
        has_template = getattr(expert.tokenizer, "chat_template", None) is not None
        self._chat = has_template if settings.chat == "auto" else settings.chat == "on"
        self._tokens: dict[int, str] = {}

    def prompt(self, question: Question, index: int) -> Prompt:
        """Return the ids of a problem, chat template included.

        Raises:
            ConfigError: prompt and answer would not fit the context of both models; the problem is named.
        """
        room = self.settings.max_new_tokens
        try:
            ids = (
                self.expert.chat(question.text, system=self.settings.system_prompt)
                if self._chat
                else self.expert.encode(question.text)
            )
            for model in (self.expert, self.amateur):
                model.encode(ids, new_tokens=room)
        except ConfigError as error:
            raise ConfigError(f"{question.where}: {error}") from error
        return Prompt(question=question, index=index, ids=tuple(ids))

    def sample(self, batch: Sequence[Prompt]) -> list[Sampled]:
        """Return what became of each problem of a batch, in its order.

        A row with NaN in its logits is refused and named; the others of its batch are sampled.

        Cost: one free run of the expert with a KV cache, one forward of each model over prompt and answer.
        """
        answers = self._answers(batch)
        given = [(p, a) for p, a in zip(batch, answers, strict=True) if isinstance(a, _Answer)]
        scored = iter(self._scored(given))
        return [
            self._sampled(p, a, next(scored))
            if isinstance(a, _Answer)
            else self._refused(p, _Answer((), False), a)
            for p, a in zip(batch, answers, strict=True)
        ]

    def is_empty(self, row: Trajectory) -> bool:
        """Whether an answer has no text; without a tokenizer, whether it is nothing but its end."""
        if self.expert.tokenizer is not None:
            return not row.answer.strip()
        return set(row.answer_ids) <= self.expert.eos_ids

    def _answers(self, batch: Sequence[Prompt]) -> list[_Answer | str]:
        """Answers of a batch; one by one where a row breaks it, so that only that row is lost."""
        try:
            return self._generated(batch)
        except NonFiniteError as error:
            if len(batch) == 1:
                return [f"the expert's answer cannot be generated: {error}"]
            return [found for p in batch for found in self._answers([p])]

    def _generated(self, batch: Sequence[Prompt]) -> list[_Answer | str]:
        first, s = batch[0].index, self.settings
        assert [p.index for p in batch] == list(range(first, first + len(batch)))
        run = self._generate.generate(
            [list(p.ids) for p in batch], s.max_new_tokens, seed=s.seed + first, **s.sampling
        )
        limit = self.amateur.vocab_size
        return [
            f"the answer holds token id {max(ids)}, which the amateur lacks (its ids end at {limit - 1})"
            if max(ids) >= limit
            else _Answer(tuple(ids), why == "eos")
            for ids, why in zip(run.tokens, run.finish, strict=True)
        ]

    def _scored(self, given: list[tuple[Prompt, _Answer]]) -> list[Selected]:
        """Every answer token under both models; the last one is predicted, never fed."""
        if not given:
            return []
        rows, starts = [[*p.ids, *a.ids[:-1]] for p, a in given], [len(p.ids) for p, _ in given]
        experts, amateurs = (side.score_batch(rows, starts) for side in self._sides)
        s = self.settings
        return [
            select(e.logits, a.logits, beta=s.beta, alpha=s.alpha)
            for e, a in zip(experts, amateurs, strict=True)
        ]

    def _sampled(self, prompt: Prompt, answer: _Answer, found: Selected) -> Sampled:
        if found.broken is not None:
            why = f"KL at answer token {found.broken} is {found.kl[found.broken]}: NaN or infinite logits"
            return self._refused(prompt, answer, why)
        trajectory = self._trajectory(prompt, answer, found)
        labels = () if self.is_empty(trajectory) else found.labels
        steps = tuple(
            StepSample(
                prompt_id=prompt.question.prompt_id,
                step=label.step,
                token_ids=label.token_ids,
                weights=label.weights,
                kl=label.kl,
                tokens=tuple(map(self._token, label.token_ids)) if self.expert.tokenizer is not None else (),
            )
            for label in labels
            if label.step >= self.settings.first_step
        )
        return Sampled(trajectory=trajectory, steps=steps)

    def _refused(self, prompt: Prompt, answer: _Answer, why: str) -> Sampled:
        return Sampled(trajectory=self._trajectory(prompt, answer, None), refused=why)

    def _trajectory(self, prompt: Prompt, answer: _Answer, found: Selected | None) -> Trajectory:
        return Trajectory(
            prompt_id=prompt.question.prompt_id,
            question=prompt.question.text,
            prompt_ids=prompt.ids,
            answer_ids=answer.ids,
            answer=self.expert.decode(answer.ids) or "",
            finished=answer.finished,
            index=prompt.index,
            kl=() if found is None else found.kl,
            dropped_mass=0.0 if found is None else float(np.float32(found.dropped_mass)),
        )

    def _token(self, token_id: int) -> str:
        if token_id not in self._tokens:
            self._tokens[token_id] = str(self.expert.tokenizer.decode([token_id]))
        return self._tokens[token_id]
