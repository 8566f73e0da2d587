"""The marking stage over a data set: saliency of every sample, streamed to disk, resumed where it was killed.

Source: arXiv:2504.04514, section 3.2 (stage 1). The paper marks and trains in the same step; the model is frozen,
so the targets are the same numbers when they are computed once and stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twinrun.errors import ConfigError
from twinrun.models.identity import model_fingerprint
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name
from twinrun.prune import targets
from twinrun.prune.saliency import OUTPUTS, Output, Saliency, refuse_without_gradients, saliency
from twinrun.prune.samples import Samples
from twinrun.prune.scorer import check_layers
from twinrun.runners.score import length_batches


def mark(
    model: Model,
    samples: Samples,
    layers: Sequence[int],
    folder: str | Path,
    *,
    output: Output = "loss",
    batch_size: int = 8,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> targets.Targets | None:
    """Write the saliency of every sample to `folder`.

    Under `torchrun` or `accelerate launch` each process takes every n-th shard; no process waits for another.

    Args:
        model: as for `saliency`.
        samples: the data set.
        layers: pruned layers.
        folder: made if missing; shards that are there already are not computed again.
        output: what T is, "loss" or "logit".
        batch_size: samples a forward, at least 1; those of one shard are batched by length.
        on_progress: called with (samples done, samples of all).

    Returns:
        The finished targets; None in a process that ended before others had written their shards.

    Raises:
        ConfigError: the folder holds targets of another request; whatever `saliency` refuses.

    Cost: one forward and one backward a batch; memory of one batch and one shard.
    """
    found = check_layers(layers, len(model.layout.layers))
    if batch_size < 1:
        raise ConfigError(f"batch size must be at least 1, got {batch_size}")
    if output not in OUTPUTS:
        raise ConfigError(f"unknown output {output!r}; T is one of {', '.join(OUTPUTS)}")
    refuse_without_gradients(model)
    place = targets.begin(folder, _request(model, samples, found, output, batch_size))
    shards = -(-len(samples) // targets.SHARD)
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    for number in range(rank, shards, world):
        first = number * targets.SHARD
        last = min(first + targets.SHARD, len(samples))
        if not targets.has_shard(place, number):
            targets.write_shard(
                place, number, _shard(model, samples, range(first, last), found, output, batch_size)
            )
        on_progress(last, len(samples))
    return targets.Targets(place, model) if targets.finish(place, shards) else None


def _request(
    model: Model, samples: Samples, layers: tuple[int, ...], output: Output, batch_size: int
) -> dict[str, Any]:
    return {
        "model": model.name,
        "fingerprint": model_fingerprint(model),
        "dtype": dtype_name(model.dtype),
        "data": samples.identity,
        "layers": list(layers),
        "output": output,
        "batch_size": batch_size,
    }


def _shard(
    model: Model, samples: Samples, indices: range, layers: tuple[int, ...], output: Output, batch_size: int
) -> list[Saliency]:
    """Saliency of some samples, in their order; batches of like length."""
    own = [samples[i] for i in indices]
    found: dict[int, Saliency] = {}
    for chunk in length_batches([[*s.prompt, *s.answer] for s in own], batch_size):
        for index, each in zip(
            chunk, saliency(model, [own[i] for i in chunk], layers, output=output), strict=True
        ):
            found[index] = each
    return [found[i] for i in range(len(own))]
