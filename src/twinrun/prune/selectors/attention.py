"""Score a token by how much the last token of the prompt attends to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.attention_inputs import attention_inputs, last_token_attention
from twinrun.models.model import Model
from twinrun.prune.schedule import Schedule
from twinrun.prune.selector import Seen


class LastAttention:
    """Attention from the last token, averaged over heads, with the pruned layer's own queries and keys.

    Source: LazyLLM, Fu et al. 2024, arXiv 2407.14057, section 3.2 (there the probabilities of the layer before decide;
    its revival of dropped tokens while decoding is not here); FastV, Chen et al. 2024, arXiv 2403.06764, section 4, is
    the same score over all queries. The attention matrix is never formed: one query, all keys.

    Differs: the pruned layer's own projections are used, so that its score costs one pass of norm and projections on
    the tokens in sight, which the layer then repeats for those that stay.

    Cost: projections to queries, keys and values of one layer a stage, a tenth to a fifth of that layer.
    """

    name = "attention"

    def __init__(self, model: Model) -> None:
        """Keep the model whose attention is looked at."""
        self._config: Any = model.config

    def check(self, model: Model, schedule: Schedule) -> None:
        """Refuse a model of which each process has only some heads.

        Raises:
            UnsupportedModelError: tensor parallel.
            ConfigError: no config.
        """
        if (getattr(model.core, "_tp_size", None) or 1) > 1:
            raise UnsupportedModelError(
                f"{model.name} is split over {model.core._tp_size} processes by heads, which would each choose other "
                "tokens; use selector 'norm', 'recency', 'random' or a scorer"
            )
        if not hasattr(self._config, "_attn_implementation_internal"):
            raise ConfigError(f"{model.name} has no transformers config; use selector 'norm' or 'recency'")

    def score(self, seen: Seen) -> Tensor:
        """Attention `[rows, tokens]`."""
        assert seen.module is not None
        return last_token_attention(attention_inputs(seen.module, seen.handed, self._config), seen.real)
