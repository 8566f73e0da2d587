"""The contract of a runner, and what those that wrap a loaded model share.

Anything with `score(tokens, start)` can be verified, whatever engine stands behind it. `raised()` is
optional: a side that has it can be judged by the precision sweep too, and a reference needs it to serve as
    the oracle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from twinrun.errors import ConfigError, ShapeError
from twinrun.models.bidirectional import refuse_bidirectional
from twinrun.models.model import Model, Prompt
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.numerics.precision import dtype_name
from twinrun.records.run import Observer, Run
from twinrun.records.scores import Scores


@runtime_checkable
class Runner(Protocol):
    """One way of running one model. Implement these two for an engine of your own."""

    def score(self, tokens: Sequence[int], start: int) -> Scores | Tensor:
        """Teacher-forced logits at positions start-1 .. len(tokens)-1: `Scores`, or `[len(tokens)-start+1, vocab]`."""

    def generate(self, prompt: Prompt, max_new_tokens: int, observe: Observer | None = None) -> Run:
        """Free-running: commit tokens until EOS, the limit, or a true answer of `observe`."""


class ModelScorer(ABC):
    """Scores texts with a `Model`. Rows of a batch never see each other: a row equals the row alone, to rounding."""

    kind: str = ""

    def __init__(self, model: Model, logits: LogitsPolicy | None = None) -> None:
        """Keep the model, unchanged, and which logits `score` is to keep (None: all, streamed in float32)."""
        if not isinstance(model, Model):
            raise ConfigError(
                f"{type(self).__name__} needs what tr.load returns, got {type(model).__name__}; "
                "call tr.load(model) first"
            )
        if logits is not None and not isinstance(logits, LogitsPolicy):
            raise ConfigError(
                f"logits must be a LogitsPolicy or None, got {logits!r}; tr.LogitsPolicy(keep=...)"
            )
        self.model = model
        self.logits = logits or LogitsPolicy()

    @property
    def name(self) -> str:
        """How records call this runner."""
        return self.kind

    def __repr__(self) -> str:
        """Show the runner with its model."""
        return f"{type(self).__name__}({self.model.name!r}, {self.dtype})"

    @property
    def model_name(self) -> str:
        """Where the model came from."""
        return self.model.name

    @property
    def dtype(self) -> str:
        """Precision of the model, as a name."""
        return dtype_name(self.model.dtype)

    @property
    def module(self) -> nn.Module:
        """The module whose forward this runner calls; `blame` and `trace` set their hooks on it."""
        return self.model.core

    @property
    def max_context(self) -> int | None:
        """Longest text, in tokens, that this runner takes; None if there is no limit."""
        return self.model.max_context

    def encode(self, prompt: Prompt, *, new_tokens: int = 0) -> list[int]:
        """Return the token ids of a prompt, checked against what this runner takes; see `Model.encode`."""
        return self.model.encode_within(prompt, self.max_context, new_tokens=new_tokens)

    def cast(self, dtype: torch.dtype) -> AbstractContextManager[torch.dtype]:
        """Inside the block this runner runs its model with weights in `dtype`."""
        return self.model.cast(dtype)

    def raised(self) -> AbstractContextManager[torch.dtype]:
        """Inside the block this runner runs its model one precision up."""
        return self.model.raised()

    def raised_part(self, name: str) -> AbstractContextManager[torch.dtype]:
        """Inside the block one module of the model, called by itself, runs one precision up."""
        return self.model.raised_part(name)

    def can_raise(self) -> str | None:
        """None if `raised` will work, else the reason why not."""
        return self.model.can_raise()

    def score(self, tokens: Sequence[int], start: int = 1) -> Scores:
        """Score one row; see `Runner.score`."""
        return self.score_batch([tokens], [start])[0]

    def score_batch(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Scores]:
        """Score rows of unequal length together.

        Args:
            rows: token ids, each row at least one token.
            starts: tokens of each row that are prompt, `1 <= start <= len(row)`; the first scored token is
                `row[start]`.

        Returns:
            One `Scores` a row, `len(row) - start + 1` rows of logits each, or the last of them that the runner's
            `LogitsPolicy` keeps.

        Raises:
            ConfigError: an id outside the vocabulary, or a row beyond the context.
            ShapeError: a start outside its row.
        """
        if len(rows) != len(starts):
            raise ShapeError(f"{len(rows)} rows with {len(starts)} starts; give one start a row")
        checked = [self.encode(row) for row in rows]
        for row, start in zip(checked, starts, strict=True):
            if not 1 <= start <= len(row):
                raise ShapeError(
                    f"start={start} in a row of {len(row)} tokens; it counts prompt tokens, from "
                    "1 to the row's length"
                )
        with torch.inference_mode():
            return [scores.kept(self.logits) for scores in self._score(checked, list(starts))]

    @abstractmethod
    def _score(self, rows: list[list[int]], starts: list[int]) -> list[Scores]:
        """Score checked rows in inference mode."""


class ModelRunner(ModelScorer):
    """A runner on a causal `Model` that adds one token a step to each row."""

    def __init__(self, model: Model, logits: LogitsPolicy | None = None) -> None:
        """Keep the model; one that looks both ways is refused."""
        super().__init__(model, logits)
        refuse_bidirectional(model.config, model.name)

    @abstractmethod
    def start(self, rows: list[list[int]], new_tokens: int) -> Decoding:
        """Begin a free run on checked prompts."""

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int = 128,
        observe: Observer | None = None,
        **sampling: Any,
    ) -> Run:
        """Run freely from one prompt or a batch of prompts of unequal length.

        Args:
            prompt: a text, token ids, or a list of either.
            max_new_tokens: tokens a row may produce, at least 1.
            observe: called with every `Step`; a true answer stops the run.
            **sampling: fields of `Sampling`: temperature (0 is greedy), top_k, top_p, seed, stop_at_eos.

        Raises:
            ConfigError: empty or too long prompts, an unknown or out-of-range setting.
        """
        from twinrun.runners.generation import run_freely

        return run_freely(self, prompt, max_new_tokens, observe, sampling)


class Decoding(Protocol):
    """A free run under way."""

    def logits(self) -> Tensor:
        """Logits `[rows, vocab]` for the next token of each row."""

    def commit(self, tokens: list[int]) -> None:
        """Append one token to each row (finished rows get a pad token, whose effect is never read)."""

    def cache_lengths(self) -> tuple[int, ...]:
        """Cached positions a layer; empty without a cache."""
