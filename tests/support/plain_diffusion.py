"""Masked-diffusion decoding of one row, written out in plain loops, as an oracle. It shares no code with the library.

Every step runs the network of `plain_llada` on the positions that are computed. Each layer keeps a dictionary from
position to key and value; a position that is not computed keeps what it had, which is all that a cache is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.plain_llada import (
    plain_attention,
    plain_block,
    plain_feed_forward,
    plain_head,
    plain_heads,
    plain_norm,
)

Noise = Callable[[int, int], Tensor]
"""Gumbel noise `[vocab]` of a forward (counted over the run, from 0) at an absolute position."""


@dataclass
class PlainStep:
    """One forward: whether it was full, and what it committed as {position: (token, confidence)}."""

    full: bool
    committed: dict[int, tuple[int, float]]
    skipped: list[int] = field(default_factory=list)


@dataclass
class PlainRun:
    """`canvas` is the generation area, `tokens` the same up to its first end; `steps` the forwards."""

    canvas: list[int]
    tokens: list[int]
    steps: list[PlainStep]


@dataclass(kw_only=True)
class PlainDiffusion:
    """A network and how its canvas is filled in.

    `rule` is ("quota", steps a block), ("threshold", p) or ("factor", f); `cache` "none", "prefix" or "dual". With
    `shifts` the logits of a position stand in the row before it, and that row is computed with the block.
    """

    weights: Mapping[str, Tensor]
    fields: Mapping[str, Any]
    block: int
    rule: tuple[str, float]
    cache: str = "none"
    refresh_every: int | None = None
    ends: Collection[int] = ()
    shifts: bool = False
    temperature: float = 0.0
    noise: Noise | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        self.mask = self.fields["mask_token_id"]
        self.w = {k.removeprefix("model.transformer."): t.to(self.dtype) for k, t in self.weights.items()}
        self.blocks = [plain_block(self.w, i) for i in range(self.fields["n_layers"])]

    def generate(self, prompt: list[int], room: int) -> PlainRun:
        """Fill in `room` masks behind `prompt`. Mask ids in the prompt are text."""
        ids = [*prompt, *[self.mask] * room]
        open_ = set(range(len(prompt), len(ids)))
        store: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in self.blocks]
        steps: list[PlainStep] = []
        for start in range(len(prompt), len(ids), self.block):
            inside = range(start, start + self.block)
            number = 0
            while open_ & set(inside):
                full = self.is_full(number)
                logits = self.run(
                    ids, list(range(len(ids))) if full else self.renewed(inside, len(ids)), store
                )
                proposed = self.propose(logits, sorted(open_ & set(inside)), len(steps))
                chosen = self.choose({p: c for p, (_, c) in proposed.items()}, number)
                steps.append(PlainStep(full, {p: proposed[p] for p in sorted(chosen)}))
                for position in chosen:
                    ids[position] = proposed[position][0]
                open_ -= chosen
                number += 1
                end = self.end_of(ids, len(prompt), open_)
                if end is not None:
                    return PlainRun(ids[len(prompt) :], ids[len(prompt) : end + 1], steps)
        return PlainRun(ids[len(prompt) :], ids[len(prompt) :], steps)

    def is_full(self, number: int) -> bool:
        """Whether step `number` of a block computes everything."""
        if self.cache == "none" or number == 0:
            return True
        return self.refresh_every is not None and number % self.refresh_every == 0

    def renewed(self, inside: range, length: int) -> list[int]:
        """Positions that a step between two full ones computes."""
        first = inside.start - (1 if self.shifts else 0)
        return list(range(first, inside.stop if self.cache == "dual" else length))

    def run(
        self, ids: list[int], at: list[int], store: list[dict[int, tuple[Tensor, Tensor]]]
    ) -> dict[int, Tensor]:
        """Logits of the positions `at` by position; their keys and values replace those in `store`."""
        x = self.w["wte.weight"][[ids[p] for p in at]]
        for own, kept in zip(self.blocks, store, strict=True):
            x = self.layer(own, kept, x, at)
        rows = plain_head(self.w, self.fields, x)
        return {p: rows[i] for i, p in enumerate(at)}

    def layer(
        self, own: Mapping[str, Tensor], kept: dict[int, tuple[Tensor, Tensor]], x: Tensor, at: list[int]
    ) -> Tensor:
        """One block on hidden states `[len(at), width]`."""
        h = plain_norm(x, own["attn_norm.weight"], self.fields)
        q, k, v = plain_heads(own, self.fields, h, torch.tensor(at))
        for i, position in enumerate(at):
            kept[position] = (k[:, i], v[:, i])
        everywhere = sorted(kept)
        keys = torch.stack([kept[p][0] for p in everywhere], 1)
        values = torch.stack([kept[p][1] for p in everywhere], 1)
        x = x + plain_attention(q, keys, values) @ own["attn_out.weight"].T
        return x + plain_feed_forward(own, plain_norm(x, own["ff_norm.weight"], self.fields))

    def propose(
        self, logits: Mapping[int, Tensor], positions: list[int], forward: int
    ) -> dict[int, tuple[int, float]]:
        """Token and confidence of each open position. The mask is out of the question, also for the softmax."""
        found = {}
        for p in positions:
            row = logits[max(0, p - 1) if self.shifts else p].double()
            row = torch.cat([row[: self.mask], torch.tensor([-math.inf]).double(), row[self.mask + 1 :]])
            ranked = row if self.temperature == 0 else row / self.temperature + self.noise_at(forward, p)
            token = int(ranked.argmax())
            found[p] = (token, float(row.softmax(0)[token]))
        return found

    def noise_at(self, forward: int, position: int) -> Tensor:
        """Noise from outside."""
        assert self.noise is not None, "a temperature needs noise"
        return self.noise(forward, position).double()

    def choose(self, confidence: Mapping[int, float], number: int) -> set[int]:
        """Positions that are committed in step `number` of their block: the surest first, equal ones left to right."""
        order = sorted(confidence, key=lambda p: (-confidence[p], p))
        kind, value = self.rule
        if kind == "quota":
            size, total = self.block, int(value)
            return set(order[: max(1, size // total + (1 if number < size % total else 0))])
        if kind == "threshold":
            return {order[0]} | {p for p in order if confidence[p] >= value}
        best = 1
        for n, p in enumerate(order, 1):
            if (n + 1) * (1 - confidence[p]) < value:
                best = max(best, n)
        return set(order[:best])

    def end_of(self, ids: list[int], start: int, open_: set[int]) -> int | None:
        """Position of the first end token with nothing open before it."""
        for position in range(start, len(ids)):
            if position in open_:
                return None
            if ids[position] in self.ends:
                return position
        return None
