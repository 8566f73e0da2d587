"""Score a token by the size of its hidden state."""

from __future__ import annotations

import torch
from torch import Tensor

from twinrun.prune.selector import Seen


class Norm:
    """The Euclidean norm of the hidden state at the layer's input, in float32. A baseline, from no paper.

    Cost: one pass over the hidden states.
    """

    name = "norm"

    def score(self, seen: Seen) -> Tensor:
        """Norms `[rows, tokens]`."""
        norms: Tensor = torch.linalg.vector_norm(seen.hidden, dim=-1, dtype=torch.float32)
        return norms
