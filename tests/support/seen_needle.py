"""A pruning runner that answers right if, and only if, its last layer kept every token of the answer."""

from __future__ import annotations

from typing import Any

import torch

import twinrun as tr
from twinrun.prune.selector import Seen


class Marked:
    """A selector that is shown the items: keeps the answer's tokens, or drops them first."""

    def __init__(self, *, keeps: bool) -> None:
        self.name = "kind" if keeps else "unkind"
        self._sign, self._items = (1 if keeps else -1), ()

    def prepare(self, items: Any) -> None:
        self._items = items

    def score(self, seen: Seen) -> torch.Tensor:
        scores = torch.zeros(seen.positions.shape)
        for row, item in enumerate(self._items):
            places = torch.tensor(sorted(needle_at(item.prompt, item.right)))
            scores[row] = self._sign * torch.isin(seen.positions[row], places).float()
        return scores


def needle_at(prompt: tuple[int, ...], right: tuple[int, ...]) -> set[int]:
    """Positions of the last place where the answer stands in the prompt."""
    at = max(i for i in range(len(prompt)) if prompt[i : i + len(right)] == right)
    return set(range(at, at + len(right)))


class SeenNeedle(tr.Pruned):
    """Prunes for real, and then writes the answer, or nothing but ids 0 where a part of it is gone."""

    def start(self, rows: list[list[int]], new_tokens: int) -> Any:
        inner = super().start(rows, new_tokens)
        items = self.selector._items
        return _Writing(self, inner, items)


class _Writing:
    def __init__(self, runner: SeenNeedle, inner: Any, items: Any) -> None:
        self._runner, self._inner, self._items, self._step = runner, inner, items, 0

    def logits(self) -> torch.Tensor:
        out = torch.zeros_like(self._inner.logits())
        for row, item in enumerate(self._items):
            kept = self._runner.last.kept_positions(row)
            last = set(kept[max(kept)]) if kept else set(range(len(item.prompt)))
            at = self._step - len(item.then)
            if 0 <= at < len(item.right) and needle_at(item.prompt, item.right) <= last:
                out[row, item.right[at]] = 1
            else:
                out[row, min(self._runner.model.eos_ids)] = 1
        return out

    def commit(self, tokens: list[int]) -> None:
        self._step += 1
        self._inner.commit(tokens)

    def cache_lengths(self) -> tuple[int, ...]:
        return tuple(self._inner.cache_lengths())
