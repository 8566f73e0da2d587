"""The other training check: a target is the saliency of the sample that it is handed to, computed anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from twinrun.errors import TrainingError
from twinrun.prune.objective import Objective
from twinrun.prune.saliency import saliency
from twinrun.prune.samples import Sample

LEAST = {torch.float64: 0.999, torch.float32: 0.999, torch.bfloat16: 0.9}
"""Smallest cosine between a stored target and the saliency computed again. Another batch rounds otherwise."""


def recheck(objective: Objective, samples: Sequence[Sample]) -> None:
    """Compute the saliency of some samples again and hold it against the targets that training would use.

    Names and hashes keep targets with their samples on disk; this looks at what arrives, whatever stands in between.

    Raises:
        TrainingError: another number of tokens, or a cosine below `LEAST` at some layer; names sample and layer.

    Cost: one forward and one backward a sample.
    """
    targets, model = objective.targets, objective.model
    if targets is None or not objective.settings.needs_targets:
        return
    for sample in samples:
        given = objective.target_of(sample)
        (own,) = saliency(model, [sample], targets.layers, output=targets.request["output"])
        for at, layer in enumerate(targets.layers):
            if given.shape != own.values.shape:
                close = 0.0
            else:
                close = float(torch.cosine_similarity(given[at].double(), own.values[at].double(), dim=0))
            # Two rows of nothing but zeros have no angle and are the same all the same.
            same = given.shape == own.values.shape and torch.equal(given[at], own.values[at])
            if not same and close < LEAST[model.dtype]:
                raise TrainingError(
                    f"the target handed to sample {sample.name} is not its saliency at layer {layer} "
                    f"(cosine {close:.2f}); it belongs to another sample: look targets up with Targets.of"
                )
