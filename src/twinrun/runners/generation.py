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
from twinrun.runners.sampling import Choice, Sampling, choose_all

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
        steps, how = _loop(runner, rows, max_new_tokens, observe)
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
        settings={"max_new_tokens": max_new_tokens, **asdict(sampling), **how},
        seconds=time.perf_counter() - began,
    )


class _Rows:
    """What each row of the batch has produced, and why it stopped."""

    def __init__(self, model: Model, prompts: list[list[int]], sampling: Sampling) -> None:
        self.prompts, self._sampling, self._pad = prompts, sampling, model.pad_id
        self._eos = model.eos_ids if sampling.stop_at_eos else frozenset()
        self._generators = sampling.generators(len(prompts))
        self._ends = [len(p) - 1 for p in prompts]
        self.new: list[list[int]] = [[] for _ in prompts]
        self.finish: list[str | None] = [None] * len(prompts)
        self.done = False

    def choose(self, logits: Tensor) -> Choice:
        """Choose for every unfinished row, and note which rows end."""
        chosen = choose_all(logits, self._sampling, self._generators, self.finish)
        eos = self._eos
        for row, token in enumerate(chosen.tokens):
            if token is not None:
                self._ends[row] += 1
                self.new[row].append(token)
                if token in eos:
                    self.finish[row] = "eos"
                    self.done = all(self.finish)
        return chosen

    def positions(self, tokens: list[int | None]) -> list[int | None]:
        """Absolute position of each token just committed."""
        return [None if t is None else end for t, end in zip(tokens, self._ends, strict=True)]

    def stop(self) -> None:
        """End every row that is still running."""
        self.finish = [why or "stopped" for why in self.finish]
        self.done = True

    def fill(self, tokens: list[int | None]) -> list[int]:
        """Replace the tokens of finished rows by padding."""
        return [self._pad if t is None else t for t in tokens]


def _loop(
    runner: ModelRunner, rows: _Rows, max_new_tokens: int, observe: Observer | None
) -> tuple[list[Step], dict[str, Any]]:
    decoding = runner.start(rows.prompts, max_new_tokens)
    steps: list[Step] = []
    clock = time.perf_counter
    retire = getattr(decoding, "retire", None)
    for index in range(max_new_tokens):
        began = clock()
        chosen = rows.choose(decoding.logits())
        tokens = chosen.tokens
        step = Step(
            index=index,
            tokens=tokens,
            positions=rows.positions(tokens),
            logprobs=chosen.logprobs,
            seconds=clock() - began,
            cache_lengths=decoding.cache_lengths(),
        )
        steps.append(step)
        if observe is not None and observe(step):
            rows.stop()
        if rows.done:
            break
        if retire is not None:
            retire(rows.finish)
        decoding.commit(rows.fill(tokens))
    settings: dict[str, Any] = getattr(decoding, "settings", dict)()
    return steps, settings
