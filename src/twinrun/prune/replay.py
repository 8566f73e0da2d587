"""Choices that were made, kept to be taken over: what a prompt kept does not depend on who asks for it next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from twinrun.prune.prefill import Prefill

MOST = 64
"""Prompts whose choices are kept, the latest ones."""


class Choices:
    """What every stage kept of the latest prompts, row by row, so that any batch of them can be pruned alike."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: OrderedDict[tuple[int, ...], tuple[Prefill, int]] = OrderedDict()

    def note(self, prompts: Sequence[Sequence[int]], prefill: Prefill | None) -> None:
        """Remember a prefill; its tensors stay on their device."""
        if prefill is None or len(prefill.lengths) != len(prompts):
            return
        for row, prompt in enumerate(prompts):
            self._known[tuple(prompt)] = (prefill, row)
            self._known.move_to_end(tuple(prompt))
        while len(self._known) > MOST:
            self._known.popitem(last=False)

    def of(self, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Tensor]:
        """Return the columns `[rows, slots]` int64 of a left-padded batch that each stage keeps, by layer.

        Empty where a prompt is not known. A row that keeps fewer than the longest is filled up with its rightmost
        padding, as in `choose`.

        Cost: one read from the device a stage and row.
        """
        found = [self._known.get(tuple(prompt)) for prompt in prompts]
        if not all(found):
            return {}
        width = max(map(len, prompts))
        rows = [_by_layer(*each, layers) for each in found if each is not None]
        return {layer: _columns([row[layer] for row in rows], prompts, width) for layer in layers}


def _by_layer(prefill: Prefill, row: int, layers: Sequence[int]) -> dict[int, list[int]]:
    """Positions that are left of one row from each layer on."""
    kept, now = prefill.kept_positions(row), list(range(prefill.lengths[row]))
    return {layer: (now := kept.get(layer, now)) for layer in layers}


def _columns(kept: Sequence[list[int]], prompts: Sequence[Sequence[int]], width: int) -> Tensor:
    slots = max(map(len, kept))
    rows = []
    for positions, prompt in zip(kept, prompts, strict=True):
        pads, missing = width - len(prompt), slots - len(positions)
        rows.append([*range(pads - missing, pads), *(pads + p for p in positions)])
    return torch.tensor(rows)
