"""The free-running loop, one for all runners: ask for logits, choose, commit, observe, until every row is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model, Prompt
from twinrun.records.run import Observer, Run, Step
from twinrun.runners.sampling import Sampling, choose

if TYPE_CHECKING:
    from twinrun.runners.runner import ModelRunner


def as_batch(prompt: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return a list of prompts: one text or one list of ids becomes a batch of one."""
    if isinstance(prompt, (str, Tensor)):
        return [prompt]
    items = list(prompt)
    if not items:
        raise ConfigError("the list of prompts is empty; give at least one prompt")
    return [cast("list[int]", items)] if isinstance(items[0], int) else cast("list[Prompt]", items)


def parse_sampling(settings: dict[str, Any]) -> Sampling:
    """Build `Sampling` from keywords; an unknown one is an error with its near names."""
    known = [f.name for f in fields(Sampling)]
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"unknown setting {name!r}; generate takes {', '.join(known)}.{near_names(name, known)}"
            )
    return Sampling(**settings)


def run_freely(
    runner: ModelRunner,
    prompt: Prompt | Sequence[Prompt],
    max_new_tokens: int,
    observe: Observer | None,
    settings: dict[str, Any],
) -> Run:
    """Generate with any runner; see `ModelRunner.generate`."""
    sampling = parse_sampling(settings)
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    model = runner.model
    prompts = [runner.encode(p, new_tokens=max_new_tokens) for p in as_batch(prompt)]
    began = time.perf_counter()
    with torch.inference_mode():
        rows = _Rows(model, prompts, sampling)
        steps = _loop(runner, rows, max_new_tokens, observe)
    texts = [model.decode(t) for t in rows.new]
    return Run(
        runner=runner.name,
        model=model.name,
        dtype=runner.dtype,
        prompts=prompts,
        tokens=rows.new,
        texts=None if model.tokenizer is None else [t or "" for t in texts],
        finish=[why or "length" for why in rows.finish],
        steps=steps,
        settings={"max_new_tokens": max_new_tokens, **asdict(sampling)},
        seconds=time.perf_counter() - began,
    )


class _Rows:
    """What each row of the batch has produced, and why it stopped."""

    def __init__(self, model: Model, prompts: list[list[int]], sampling: Sampling) -> None:
        self.prompts, self._sampling, self._pad = prompts, sampling, model.pad_id
        self._eos = model.eos_ids if sampling.stop_at_eos else frozenset()
        self._generators = sampling.generators(len(prompts))
        self.new: list[list[int]] = [[] for _ in prompts]
        self.finish: list[str | None] = [None] * len(prompts)

    @property
    def done(self) -> bool:
        return all(self.finish)

    def choose(self, logits: Tensor) -> tuple[list[int | None], list[float | None]]:
        """Choose for every unfinished row."""
        tokens: list[int | None] = []
        logprobs: list[float | None] = []
        for i, generator in enumerate(self._generators):
            if self.finish[i]:
                tokens.append(None)
                logprobs.append(None)
                continue
            token, logprob = choose(logits[i], self._sampling, generator)
            self.new[i].append(token)
            if token in self._eos:
                self.finish[i] = "eos"
            tokens.append(token)
            logprobs.append(logprob)
        return tokens, logprobs

    def positions(self, tokens: list[int | None]) -> list[int | None]:
        """Absolute position of each token just committed."""
        ends = [len(p) + len(n) - 1 for p, n in zip(self.prompts, self.new, strict=True)]
        return [None if t is None else end for t, end in zip(tokens, ends, strict=True)]

    def fill(self, tokens: list[int | None]) -> list[int]:
        """Replace the tokens of finished rows by padding."""
        return [self._pad if t is None else t for t in tokens]


def _loop(runner: ModelRunner, rows: _Rows, max_new_tokens: int, observe: Observer | None) -> list[Step]:
    decoding = runner.start(rows.prompts, max_new_tokens)
    steps: list[Step] = []
    for index in range(max_new_tokens):
        began = time.perf_counter()
        tokens, logprobs = rows.choose(decoding.logits())
        step = Step(
            index=index,
            tokens=tokens,
            positions=rows.positions(tokens),
            logprobs=logprobs,
            seconds=time.perf_counter() - began,
            cache_lengths=decoding.cache_lengths(),
        )
        steps.append(step)
        if observe is not None and observe(step):
            rows.finish = [why or "stopped" for why in rows.finish]
        if rows.done:
            break
        decoding.commit(rows.fill(tokens))
    return steps
