"""Keep the beginning and the end of the prompt, whatever is in it."""

from __future__ import annotations

from torch import Tensor

from twinrun.prune.selector import Seen


class Recency:
    """The newest tokens score highest; together with the protected first tokens that is a sink and a tail.

    Source: StreamingLLM, Xiao et al. 2024, arXiv 2309.17453, section 3.2 (attention sinks and a rolling window). There
    positions are renumbered inside the cache; here they stay, as for every selector.

    Cost: none.
    """

    name = "recency"

    def score(self, seen: Seen) -> Tensor:
        """Position as the score."""
        return seen.positions.float()
