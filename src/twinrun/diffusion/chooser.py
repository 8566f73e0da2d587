"""From hidden states to a commit: logits of the open positions, proposals, and the rule's choice among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinrun.diffusion.feed import Board, Feed
from twinrun.diffusion.forward import Passed
from twinrun.diffusion.propose import chunks, propose
from twinrun.diffusion.settings import DiffusionSettings
from twinrun.models.parts import Parts


@dataclass(slots=True, kw_only=True)
class Chooser:
    """Proposes and chooses for all rows of a canvas, with one source of chance a row.

    Attributes:
        parts: pieces of the model; its norm and head are used.
        settings: commit rule and remasking.
        mask_id: never proposed.
        temperature: 0 is greedy.
        generators: of each row, in the order of the canvas.
        logits: where to keep the logits of a step, for a probe; None keeps none.
    """

    parts: Parts
    settings: DiffusionSettings
    mask_id: int
    temperature: float = 0.0
    generators: Sequence[torch.Generator] = ()
    logits: list[Tensor] | None = None

    def update(self, board: Board, feed: Feed, passed: Passed, open: Tensor) -> Tensor:
        """Propose for every open position whose hidden state is new.

        Args:
            board: takes the proposals.
            feed: what was fed.
            passed: what came out.
            open: `[rows, block]` booleans on the host.

        Returns:
            The positions, `[n]` int64: row times block, plus block column.
        """
        wanted = open if passed.fresh is None else open & passed.fresh[:, feed.rows].cpu()
        by_row = self.temperature > 0
        at = wanted.flatten().nonzero()[:, 0]
        counts = wanted.sum(1).tolist() if by_row else [len(at)]
        at = at.to(passed.hidden.device)
        hidden = passed.hidden[:, feed.rows].flatten(0, 1).index_select(0, at)
        tokens_of, confidence_of = board.tokens.view(-1), board.confidence.view(-1)
        for number, part in chunks(counts, self.parts.model.vocab_size, by_row=by_row):
            logits = self.parts.logits(hidden[None, part])[0]
            logits[:, self.mask_id] = -math.inf
            if self.logits is not None:
                self.logits.append(logits)
            source = self.generators[number] if by_row else None
            tokens, confidence = propose(logits, self.temperature, source)
            tokens_of.index_copy_(0, at[part], tokens)
            confidence_of.index_copy_(0, at[part], confidence)
        return at

    def eligible(self, feed: Feed, passed: Passed, open: Tensor) -> Tensor:
        """Open positions `[rows, block]` that may be committed: all, or in each row its candidates, if it has any."""
        if passed.candidates is None:
            return open
        mine = open & passed.candidates[:, feed.rows]
        return torch.where(mine.any(1, keepdim=True), mine, open)

    def choose(self, board: Board, open: Tensor, *, step: int, size: int) -> Tensor:
        """Say which proposals are committed.

        Args:
            board: the proposals.
            open: `[rows, block]` booleans on the board's device.
            step: number of the step inside the block.
            size: positions that were open at its first step.

        Returns:
            `[rows, block]` booleans, a subset of `open`.
        """
        rank = board.confidence
        if self.settings.remasking == "random":
            rank, counts = torch.zeros_like(rank), open.sum(1).tolist()
            rank[open] = torch.cat([self._draw(g, n) for g, n in zip(self.generators, counts, strict=True)])
        return self.settings.commit.choose(rank, open, step=step, size=size) & open

    @staticmethod
    def _draw(source: torch.Generator, count: int) -> Tensor:
        return torch.rand(count, generator=source, dtype=torch.float64, device=source.device)


def to_host(board: Board, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choice, proposals and confidences on the host, by one copy."""
    if chosen.device.type == "cpu":
        return chosen, board.tokens, board.confidence
    packed = torch.stack([chosen.double(), board.tokens.double(), board.confidence]).cpu()
    return packed[0] > 0, packed[1].long(), packed[2]
