"""What a selector is: it gives every token in sight a score, and the highest are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a selector is shown at one stage: the tokens that are still there, at the input of the layer.

    Rows are padded on the left where their numbers of tokens differ.

    Attributes:
        layer: index of the layer from 0.
        stage: index of the stage from 0.
        hidden: `[rows, tokens, width]`, what enters the layer, in the model's precision.
        positions: `[rows, tokens]` int64, place of each token in its own prompt from 0; -1 is padding.
        real: `[rows, tokens]` bool, False for padding.
        lengths: tokens of each row's whole prompt, on the host.
        ids: `[rows, tokens]` int64 token ids; None where the model was fed embeddings.
        module: the layer.
        handed: the layer's arguments by name, as it would get them without this stage.
    """

    layer: int
    stage: int
    hidden: Tensor
    positions: Tensor
    real: Tensor
    lengths: tuple[int, ...]
    ids: Tensor | None = None
    module: nn.Module | None = None
    handed: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Selector(Protocol):
    """Scores tokens. One a file under `prune/selectors/`; any object with these two will do."""

    name: str

    def score(self, seen: Seen) -> Tensor:
        """Scores `[rows, tokens]`, float, higher is kept longer; what padding and protected tokens get is ignored."""
