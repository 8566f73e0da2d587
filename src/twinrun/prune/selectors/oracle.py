"""Score tokens by numbers that are given: true saliency, to see how good a selector could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from twinrun.errors import ConfigError, ShapeError
from twinrun.prune.selector import Seen


class Oracle:
    """Scores computed beforehand for one prompt, or one batch.

    Args:
        scores: `{layer: one tensor [tokens] a row}`, a score for each token of the whole prompt, padding not counted;
            one `[tokens]` or `[rows, tokens]` tensor where rows are as long as each other.

    Cost: none in the prefill; that of the saliency beforehand (a backward pass).
    """

    name = "oracle"

    def __init__(self, scores: Mapping[int, Tensor | Sequence[Tensor]]) -> None:
        """Keep the scores."""
        self._rows = {layer: _rows(value) for layer, value in scores.items()}

    def score(self, seen: Seen) -> Tensor:
        """Look up the tokens that are left.

        Raises:
            ConfigError: no scores for this layer.
            ShapeError: scores of other prompts.
        """
        if seen.layer not in self._rows:
            raise ConfigError(
                f"no scores were given for layer {seen.layer}, only for {', '.join(map(str, self._rows))}; give every "
                "layer of the schedule"
            )
        rows = self._rows[seen.layer]
        sizes = tuple(len(row) for row in rows)
        if sizes != seen.lengths:
            raise ShapeError(
                f"scores were given for prompts of {sizes} tokens and the batch has {seen.lengths}; give one score a "
                "prompt token"
            )
        table = torch.nn.utils.rnn.pad_sequence([row.float() for row in rows], batch_first=True)
        return table.to(seen.positions.device).gather(1, seen.positions.clamp_min(0))


def _rows(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.ndim == 1 else list(value)
    return [torch.as_tensor(row) for row in value]
