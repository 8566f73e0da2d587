"""The oracle of an evaluation: tokens kept by how much the right answer hangs on them. A ceiling, not a method."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.prune.saliency import refuse_without_gradients, saliency
from twinrun.prune.samples import Sample
from twinrun.prune.selector import Seen
from twinrun.prune.selectors.oracle import Oracle
from twinrun.quality.item import Item


class AnswerSaliency:
    """A selector that is shown the right answer beforehand.

    The score of a prompt token is the size of its saliency (gradient of the answer's loss times hidden state) at the
    input of the layer, in the model without pruning. Where the question follows the pruned context, the loss is still
    that of the answer alone.

    Args:
        model: float32, bfloat16 or float64.
        layers: those of the schedule.

    Raises:
        UnsupportedModelError, ConfigError: a model without gradients.

    Cost: one forward and one backward of every item.
    """

    name = "oracle"

    def __init__(self, model: Model, layers: Sequence[int]) -> None:
        """Nothing runs before the first items."""
        refuse_without_gradients(model)
        self._model, self._layers = model, tuple(layers)
        self._oracle: Oracle | None = None

    def prepare(self, items: Sequence[Item]) -> None:
        """Compute the saliency of the items that are answered next."""
        samples = [Sample(item.key, (*item.prompt, *item.then), item.right) for item in items]
        found = saliency(self._model, samples, self._layers)
        self._oracle = Oracle(
            {
                layer: [
                    each.values[at, : len(item.prompt)].abs() for each, item in zip(found, items, strict=True)
                ]
                for at, layer in enumerate(self._layers)
            }
        )

    def score(self, seen: Seen) -> Tensor:
        """Look up the tokens that are left.

        Raises:
            ConfigError: nothing was prepared.
        """
        if self._oracle is None:
            raise ConfigError("the oracle was not shown any items; it is for `twinrun prune eval`")
        return self._oracle.score(seen)
