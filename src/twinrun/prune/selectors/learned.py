"""Score tokens by trained scorers, one small network a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.prune.schedule import Schedule
from twinrun.prune.selector import Seen


class Learned:
    """The scorers of SDTP (arXiv 2504.04514, equation 1): an MLP on the hidden state of each token alone.

    Args:
        scorer: has `layers` (indices) and `score(layer, hidden) -> [rows, tokens]`.

    Cost: that of the scorer, under 1 % of the model's FLOPs in the paper.
    """

    name = "learned"

    def __init__(self, scorer: Any) -> None:
        """Keep the scorer."""
        if not callable(getattr(scorer, "score", None)) or not hasattr(scorer, "layers"):
            raise ConfigError(
                f"scorer is a {type(scorer).__name__}; give what `Scorer.load(folder, model)` returns, or "
                "selector='random', 'recency', 'norm' or 'attention'"
            )
        self.scorer = scorer

    def check(self, model: Model, schedule: Schedule) -> None:
        """Refuse a scorer of another model, or without a network for a layer of the schedule.

        Raises:
            ConfigError: it is.
        """
        missing = [layer for layer in schedule.layers if layer not in set(self.scorer.layers)]
        if missing:
            raise ConfigError(
                f"the scorer was trained for layers {_listed(self.scorer.layers)} and the schedule prunes at layer "
                f"{missing[0]}; prune where it was trained"
            )
        width, own = getattr(self.scorer, "width", None), getattr(model.config, "hidden_size", None)
        if width is not None and own is not None and width != own:
            raise ConfigError(
                f"the scorer reads hidden states of width {width} and {model.name} has {own}: it belongs to another "
                "model"
            )
        check = getattr(self.scorer, "check", None)
        if callable(check):
            check(model)

    def score(self, seen: Seen) -> Tensor:
        """Keep logits of the layer's network."""
        found: Tensor = self.scorer.score(seen.layer, seen.hidden)
        return found


def _listed(layers: Any) -> str:
    return ", ".join(map(str, layers))
