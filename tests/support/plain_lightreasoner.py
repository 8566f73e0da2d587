"""The sampling of LightReasoner's public project, told again plainly: one problem at a time, text in between.

The expert answers with transformers' `generate`, whose processed scores are taken as its distributions. For every
prefix of the answer, the prefix is decoded, put behind the prompt's text, tokenised, and the amateur is run on all of
it; prefixes go in batches padded on the right, with `ids != pad` as mask and logits of every position. 1e-12 is added
to both distributions. Step 0 is never a candidate. Shares no code with twinrun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-12


@dataclass
class PlainStep:
    step: int
    token_ids: list[int]
    weights: list[float]
    kl: float


@dataclass
class PlainAnswer:
    prompt_ids: list[int]
    answer_ids: list[int]
    fed: list[list[int]]
    """What the amateur was given at steps 1, 2, ..."""
    steps: list[PlainStep]

    def survives(self, step: int) -> bool:
        """Whether the amateur was given the ids that the expert wrote."""
        return self.fed[step - 1] == self.prompt_ids + self.answer_ids[:step]


@dataclass
class Plain:
    """Two transformers models and their tokenizer. `prefixes` a forward of the amateur: 64 there, 1 is one by one."""

    expert: Any
    amateur: Any
    tokenizer: Any
    prefixes: int = 64
    beta: float = 0.4
    alpha: float = 0.2
    system: str = "Please reason step by step."

    @torch.no_grad()
    def answer(self, question: str, max_new_tokens: int) -> PlainAnswer:
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = self.tokenizer(text).input_ids
        out = self.expert.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=max_new_tokens, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        answer = out.sequences[0][len(prompt) :].tolist()
        experts = [torch.softmax(score[0].float(), -1) for score in out.scores]
        fed = [
            self.tokenizer(text + self.tokenizer.decode(answer[:n])).input_ids for n in range(1, len(answer))
        ]
        steps = []
        for step, amateur in enumerate(self.amateurs(fed), 1):
            found = self.judge(step, experts[step], amateur)
            steps += [] if found is None else [found]
        return PlainAnswer(prompt, answer, fed, steps)

    def amateurs(self, fed: Sequence[list[int]]) -> Iterator[Tensor]:
        """The amateur's distribution behind each prefix."""
        pad = self.tokenizer.pad_token_id
        for at in range(0, len(fed), self.prefixes):
            chunk = [torch.tensor(ids) for ids in fed[at : at + self.prefixes]]
            padded = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True, padding_value=pad)
            logits = self.amateur(padded, attention_mask=(padded != pad).long()).logits
            for row, ids in zip(logits, chunk, strict=True):
                yield torch.softmax(row[len(ids) - 1].float(), -1)

    def judge(self, step: int, p: Tensor, q: Tensor) -> PlainStep | None:
        size = min(len(p), len(q))
        p, q = p[:size], q[:size]
        kl = float(((p + EPSILON) * ((p + EPSILON).log() - (q + EPSILON).log())).sum())
        if kl < self.beta:
            return None
        plausible = p >= self.alpha * p.max()
        ratio = (p + EPSILON).log() - (q + EPSILON).log()
        weights = torch.softmax(ratio[plausible], -1)
        return PlainStep(step, plausible.nonzero()[:, 0].tolist(), weights.tolist(), kl)
