"""How far each token's hidden states have moved since it was last computed, measured by position, layer by layer.

This asks no runner what it compared with what: it aligns by absolute position itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Moved:
    """The hidden states of a block's positions the last time that each of them went through all layers."""

    def __init__(self) -> None:
        """Nothing has been seen of this block."""
        self._then: Tensor | None = None

    def cosines(self, outcome: Any, row: int, place: Tensor, positions: list[int]) -> Tensor | None:
        """Cosine of each layer's input (and the last output) with that of the same position the last time.

        Args:
            outcome: a step with the hidden states of all layers, over its own columns.
            row: of the batch.
            place: absolute position of each canvas column.
            positions: of the block.

        Returns:
            `[layers + 1, positions]` float32, NaN where a token had dropped out; None in the first step of a block.
        """
        fed = {p: i for i, p in enumerate(place[outcome.columns].tolist())}
        at = [fed[p] for p in positions]
        now = torch.stack([layer[row, at].float() for layer in outcome.layers])
        then = self._then
        if then is None:
            self._then = now
            return None
        found = torch.cosine_similarity(now, then, dim=-1).clamp(max=1)
        whole = ~now[-1].isnan().any(-1)
        self._then = torch.where(whole[None, :, None], now, then)
        return found.cpu()
