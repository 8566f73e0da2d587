"""Small sweeps: ceilings that cost nothing, runners with a planted pace, fault or refusal, and sizes by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import twinrun as tr
from twinrun.bench import ceilings, memory, passage, row

MIB = 2**20


class Clock:
    """Time passes only when a runner says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Paced(tr.KVCache):
    """Takes a set time on the clock for every token, whatever it does."""

    def __init__(self, model: tr.Model, clock: Clock, seconds: float) -> None:
        super().__init__(model)
        self._clock, self._seconds = clock, seconds

    def generate(
        self, prompt: Any, max_new_tokens: int = 128, observe: Any = None, **sampling: Any
    ) -> tr.Run:
        def slowly(step: tr.Step) -> Any:
            self._clock.now += self._seconds
            return observe(step)

        return super().generate(prompt, max_new_tokens, slowly, **sampling)


class Narrow(tr.KVCache):
    """Raises from a prompt length on."""

    def __init__(self, model: tr.Model, limit: int, error: Callable[[], Exception]) -> None:
        super().__init__(model)
        self._limit, self._error = limit, error

    @property
    def name(self) -> str:
        return "narrow"

    def generate(
        self, prompt: Any, max_new_tokens: int = 128, observe: Any = None, **sampling: Any
    ) -> tr.Run:
        if len(prompt) >= self._limit:
            raise self._error()
        return super().generate(prompt, max_new_tokens, observe, **sampling)


class Engine:
    """Somebody's own engine: the protocol and nothing else."""

    def __init__(self, runner: Any, *, eos_after: int | None = None) -> None:
        self._runner, self._eos_after = runner, eos_after

    def score(self, tokens: Any, start: int) -> torch.Tensor:
        scores = self._runner.score(tokens, start)
        return scores.logits.rows(0, scores.logits.num_rows)

    def generate(self, prompt: Any, max_new_tokens: int, observe: Any = None) -> tr.Run:
        count = min(max_new_tokens, self._eos_after or max_new_tokens)
        run = self._runner.generate(prompt, count, stop_at_eos=False)
        for step in run.steps:
            if observe is not None and observe(tr.Step(**{**_fields(step), "cache_lengths": ()})):
                break
        return run


def _fields(step: tr.Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in step.__slots__}


def cheap_ceilings(monkeypatch: pytest.MonkeyPatch, cache_bytes: int | None = 64 * MIB) -> None:
    """Let a sweep measure ceilings on buffers of a megabyte, claim a cache of `cache_bytes`, and collect no garbage."""
    monkeypatch.setattr(ceilings, "READ_FLOOR", MIB)
    monkeypatch.setattr(ceilings, "SIZES", {"cpu": (64,)})
    monkeypatch.setattr(ceilings, "TRIES", 1)
    monkeypatch.setattr(ceilings, "free_bytes", lambda _: 4 * MIB)
    monkeypatch.setattr(ceilings, "last_level_cache_bytes", lambda _: cache_bytes)
    # Half a second a call in a process with transformers; peaks are judged in test_memory.py.
    monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))


def use_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Time passages by `clock`."""
    whole = passage.run_forced

    def by_clock(*args: Any, **settings: Any) -> passage.Passage:
        return whole(*args, **settings, clock=clock)

    monkeypatch.setattr(row, "run_forced", by_clock)


def flops_by_hand(config: Any, queries: int, keys: int) -> int:
    """Operations of one forward of a gated, grouped-query decoder (Llama, Qwen3) whose head sees one row.

    Two per weight and token in the projections and the feed-forward part, and 2 * 2 * queries * keys * width for
    attention; the head once.
    """
    width, head_dim = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    layer = width * (q + 2 * kv) + q * width + 3 * width * config.intermediate_size
    attention = 4 * queries * keys * q
    return config.num_hidden_layers * (2 * layer * queries + attention) + 2 * width * config.vocab_size
