"""How the next token is chosen from a row of logits: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from twinrun.errors import ConfigError, NonFiniteError

_NAN = "the logits of the next token hold NaN; verify the model one precision up (twinrun verify)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings of a free run. The default is greedy. Invalid settings cannot be built."""

    temperature: float = field(
        default=0.0, metadata={"help": "0 is greedy; 1 samples the model's own distribution"}
    )
    top_k: int = field(default=0, metadata={"help": "draw from the k likeliest tokens; 0 keeps all"})
    top_p: float = field(
        default=1.0, metadata={"help": "draw from the smallest set with this mass, in (0, 1]"}
    )
    seed: int = field(default=0, metadata={"help": "row i of a batch draws from seed + i"})
    stop_at_eos: bool = field(default=True, metadata={"help": "end a row at the model's end-of-text token"})

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.temperature >= 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}; 0 is greedy")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0, got {self.top_k}; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}; 1 keeps all tokens")

    def generators(self, num_rows: int) -> list[torch.Generator]:
        """One source of randomness a row, so that a row draws the same numbers alone and in any batch."""
        return [torch.Generator().manual_seed(self.seed + i) for i in range(num_rows)]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a step commits: a token a row with its log-probability, None for rows that have ended."""

    tokens: list[int | None]
    logprobs: list[float | None]


def choose_all(
    logits: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    ended: Sequence[object],
) -> Choice:
    """Choose a token for every row of `[rows, vocab]` that has not ended.

    Greedy choice takes the first of the largest log-probabilities in float32: one log-softmax and one maximum for the
    whole batch, on the device of the logits. Drawing goes row by row; see `choose`.

    Raises:
        NonFiniteError: a row that has not ended holds NaN, or no finite number.
    """
    if sampling.temperature != 0:
        return _draw_all(logits, sampling, generators, ended)
    best, ids = torch.log_softmax(logits.float(), dim=-1).max(dim=-1)
    tokens, logprobs = cast("list[int | None]", ids.tolist()), cast("list[float | None]", best.tolist())
    for row, why in enumerate(ended):
        if why:
            tokens[row] = logprobs[row] = None
        elif logprobs[row] != logprobs[row]:
            raise NonFiniteError(_NAN)
    return Choice(tokens, logprobs)


def _draw_all(
    logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator], ended: Sequence[object]
) -> Choice:
    tokens: list[int | None] = []
    logprobs: list[float | None] = []
    for row, (generator, why) in enumerate(zip(generators, ended, strict=True)):
        token, logprob = (None, None) if why else choose(logits[row], sampling, generator)
        tokens.append(token)
        logprobs.append(logprob)
    return Choice(tokens, logprobs)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[int, float]:
    """Choose a token from one row of logits `[vocab]`; return it with its log-probability under the raw row.

    Temperature divides the logits; top-k keeps the k likeliest; top-p keeps the smallest set of likeliest
    tokens whose mass reaches p (Holtzman et al. 2020, arXiv:1904.09751). One uniform number
    is drawn a token and looked up in the cumulative distribution sorted by probability, so a rounding
    difference in the logits moves the outcome only when the number falls on a boundary.

    Raises:
        NonFiniteError: the row holds NaN, or no finite number.
    """
    logp = torch.log_softmax(logits.float().cpu(), dim=-1)
    if torch.isnan(logp).any():
        raise NonFiniteError(_NAN)
    if sampling.temperature == 0:
        token = int(logp.argmax())
        return token, float(logp[token])
    probs, ids = torch.softmax(logp.double() / sampling.temperature, dim=-1).sort(
        descending=True, stable=True
    )
    if sampling.top_k:
        probs, ids = probs[: sampling.top_k], ids[: sampling.top_k]
    before = probs.cumsum(0) - probs
    probs = probs[before < sampling.top_p * probs.sum()]
    ladder = probs.cumsum(0)
    draw = torch.rand((), generator=generator, dtype=torch.float64) * ladder[-1]
    token = int(ids[min(int(torch.searchsorted(ladder, draw, right=True)), len(ladder) - 1)])
    return token, float(logp[token])
