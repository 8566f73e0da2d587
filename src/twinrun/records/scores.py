"""What a runner says about one text: a row of logits for each scored position, produced on demand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from twinrun.errors import ShapeError
from twinrun.numerics.blocks import LogitRows, StoredLogits, last_rows
from twinrun.numerics.divergence import TokenStats, token_stats
from twinrun.numerics.logits_policy import LogitsPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """What the routers of a mixture-of-experts model decided, one entry for each scored row.

    Entry i covers every token that row i's forward attended to: `experts[i]` is `[layers, tokens, k]`
    (chosen ids), `logits[i]` `[layers, tokens, experts]`. Entries of one forward are views of one tensor.
    """

    experts: list[Tensor]
    logits: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Teacher-forced scores of one row of tokens.

    Row i of `logits` stands at `positions[i]` (absolute, padding not counted) and predicts the token at the
    next position. `tokens` are the ids of the whole row, so that two sides can prove that they scored the
    same text.
    """

    tokens: tuple[int, ...]
    positions: Tensor
    logits: LogitRows
    seconds: float = 0.0
    path: str = "logits"
    cache_lengths: tuple[int, ...] = ()
    routes: Routes | None = field(default=None, repr=False)
    policy: LogitsPolicy = field(default_factory=LogitsPolicy)

    def __post_init__(self) -> None:
        """Refuse rows without positions."""
        if self.positions.ndim != 1 or len(self.positions) != self.logits.num_rows:
            raise ShapeError(
                f"{self.logits.num_rows} rows of logits with positions of shape "
                f"{tuple(self.positions.shape)}; "
                "give every row one position"
            )

    @classmethod
    def of_logits(cls, tokens: list[int] | tuple[int, ...], start: int, logits: Tensor) -> Scores:
        """Wrap logits of any engine, `[len(tokens) - start + 1, vocab]`; the first row predicts token `start`.

        Example:
            >>> Scores.of_logits([5, 6, 7], 1, torch.zeros(3, 10)).positions
            tensor([0, 1, 2])
        """
        if logits.ndim != 2:
            raise ShapeError(
                f"logits have shape {tuple(logits.shape)}; give [rows, vocab], one row a position "
                "from start - 1 on"
            )
        positions = torch.arange(start - 1, start - 1 + logits.shape[0])
        return cls(tokens=tuple(tokens), positions=positions, logits=StoredLogits(logits))

    @property
    def next_ids(self) -> Tensor:
        """`[rows]` int64: the token that each row should predict, -1 after the last token of the row."""
        ids = torch.tensor([*self.tokens, -1])
        return ids[(self.positions + 1).clamp(max=len(self.tokens))]

    def stats(self, top_k: int = 5) -> TokenStats:
        """Log-probability, entropy and likeliest tokens of every row, as `policy` says. Streams the logits.

        Example:
            >>> Scores.of_logits([2, 3], 1, torch.zeros(2, 4)).stats().entropy
            tensor([1.3863, 1.3863])
        """
        return token_stats(self.logits, self.next_ids, top_k, policy=self.policy)

    def kept(self, policy: LogitsPolicy) -> Scores:
        """Return the rows that `policy` keeps, to be read as it says; the memory of the others is let go.

        Example:
            >>> Scores.of_logits([5, 6, 7], 1, torch.zeros(3, 4)).kept(LogitsPolicy(keep="last")).positions
            tensor([2])
        """
        count = policy.rows(self.logits.num_rows)
        if count == self.logits.num_rows:
            return replace(self, policy=policy)
        routes = self.routes and Routes(
            experts=self.routes.experts[-count:], logits=self.routes.logits[-count:]
        )
        rows = last_rows(self.logits, count)
        return replace(self, positions=self.positions[-count:], logits=rows, routes=routes, policy=policy)
