"""Which steps of an answer are worth learning, and the label of each: KL of the raw distributions, and the contrast.

Both streams of logits are read in blocks, so `[steps, vocab]` never exists; what is kept of a step is its plausible
set, a handful of ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinrun.errors import ConfigError, ShapeError
from twinrun.numerics.blocks import LogitRows, log_softmax, row_blocks
from twinrun.numerics.divergence import kl_of_rows, restrict

ANSWER_BLOCK, ANSWER_CALL = 19 * 2**19, 16
"""Float32 bytes of a block, and blocks that go through the head in a call: 16 and 256 rows of a vocabulary of 151,936.
A call reads all of such a head (272 MB): an answer of 128 tokens takes one, one of 512 takes two, in three quarters of
the time of four. Its logits stay in the model's own precision, 78 MB in a half type."""
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Coordinates = tuple[Ids, Ids, Floats]
"""Row, token id and log-ratio of every plausible token of a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What the expert has to say at one step: the plausible ids in descending weight, and the weights, which sum to 1.

    Weights are float32 values; equal ones stand in ascending order of their ids.
    """

    step: int
    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What was found in the rows of one answer.

    Attributes:
        kl: KL(E || A) of every row, float32, nats; NaN or infinite where a distribution is not one.
        labels: the rows that are kept, in order.
        shared_vocab: ids that both heads have; both distributions are taken over these.
        dropped_mass: largest mass, on either side and at any row, that lay on other ids.
    """

    kl: tuple[float, ...]
    labels: tuple[Label, ...]
    shared_vocab: int
    dropped_mass: float

    @property
    def broken(self) -> int | None:
        """First row whose KL is not finite; None if all are."""
        return next((i for i, value in enumerate(self.kl) if not math.isfinite(value)), None)


def select(
    expert: LogitRows,
    amateur: LogitRows,
    *,
    beta: float = 0.4,
    alpha: float = 0.2,
    block_bytes: int = ANSWER_BLOCK,
) -> Selected:
    """Keep the steps at which the expert differs from the amateur, each with its contrastive label.

    Row t is kept where KL(E || A) > beta over the full vocabulary. Its label lives on V = {a : E(a) >= alpha * max E}
    and is the softmax over V of log E - log A.

    Source: LightReasoner (arXiv:2510.07962), step selection and contrastive label.

    Args:
        expert: rows of raw logits, one an answer token; any precision, the softmax is taken in float32.
        amateur: rows at the same positions; another width is fine, ids must mean the same.
        beta: nats, at least 0.
        alpha: in (0, 1]; 1 keeps the likeliest ids only.
        block_bytes: float32 bytes of one block of one side.

    Returns:
        `Selected`. Rows with NaN, or with an infinite KL (the amateur gives no mass to what the expert may say), are
        never kept; `broken` names the first.

    Raises:
        ConfigError: beta or alpha outside its range.
        ShapeError: unequal numbers of rows.

    Differs from the public code: no epsilon is added (there, 1e-12 to both), ids beyond the shorter head are
    renormalised away and their mass is reported, and a row whose KL equals beta is dropped, as in the paper.

    Cost: two float32 blocks at a time; O(rows * vocab) work.

    Example:
        >>> from twinrun.numerics.blocks import StoredLogits
        >>> e, a = (StoredLogits(torch.tensor([row])) for row in ([3.0, 3.0, -9.0], [0.0, 2.0, 5.0]))
        >>> found = select(e, a).labels[0]
        >>> found.token_ids, [round(w, 3) for w in found.weights]
        ((0, 1), [0.881, 0.119])
    """
    check_thresholds(beta, alpha)
    if expert.num_rows != amateur.num_rows:
        raise ShapeError(
            f"the expert has {expert.num_rows} rows and the amateur {amateur.num_rows}; give the same positions"
        )
    shared = min(expert.vocab_size, amateur.vocab_size)
    kl, dropped = [np.empty(0, np.float32)], 0.0
    parts: list[Coordinates] = []
    with torch.inference_mode():
        for rows, (e, a) in row_blocks(expert, amateur, block_bytes=block_bytes, head_blocks=ANSWER_CALL):
            log_e, out_e = restrict(log_softmax(e).float(), shared)
            log_a, out_a = restrict(log_softmax(a).float(), shared)
            dropped = max(dropped, float(torch.cat([out_e, out_a]).nan_to_num().max()))
            found = _plausible(log_e, log_a, alpha)
            kl.append(kl_of_rows(log_e, log_a).cpu().numpy())
            parts.append(_kept(found, kl[-1], beta, rows.start))
            del e, a, log_e, log_a  # before the next block makes new ones
    values = np.concatenate(kl)
    return Selected(
        kl=tuple(values.tolist()),
        labels=tuple(label for part in parts for label in _labels(part, values)),
        shared_vocab=shared,
        dropped_mass=dropped,
    )


def check_thresholds(beta: float, alpha: float) -> None:
    """Refuse thresholds outside their ranges."""
    if not (beta >= 0 and math.isfinite(beta)):
        raise ConfigError(f"beta must be at least 0 nats, got {beta}; the paper has 0.4")
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha must be in (0, 1], got {alpha}; the paper has 0.2")


def _plausible(log_e: Tensor, log_a: Tensor, alpha: float) -> Coordinates:
    """Coordinates of V in every row of a block. Only these few numbers leave the device."""
    floor = log_e.max(dim=-1, keepdim=True).values + math.log(alpha)
    row, token = (log_e >= floor).nonzero(as_tuple=True)
    ratio = log_e[row, token] - log_a[row, token]
    return row.cpu().numpy(), token.cpu().numpy(), ratio.cpu().numpy()


def _kept(found: Coordinates, kl: Floats, beta: float, first: int) -> Coordinates:
    """Leave out the rows that are not kept; count rows from the first of the text."""
    row, token, ratio = found
    keep = ((kl > beta) & np.isfinite(kl))[row]
    return row[keep] + first, token[keep], ratio[keep]


def _labels(part: Coordinates, kl: Floats) -> list[Label]:
    """Softmax of the log-ratio over each row's V, on the CPU and in one order: the same numbers at every run."""
    row, token, ratio = part
    if not len(row):
        return []
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(row)))
    weight = np.exp(ratio - np.maximum.reduceat(ratio, starts)[group])
    weight /= np.add.reduceat(weight, starts)[group]
    order = np.lexsort((token, -weight, group))
    ids, weights = token[order], weight[order]
    return [
        Label(
            step=int(row[low]),
            token_ids=tuple(ids[low:high].tolist()),
            weights=tuple(weights[low:high].tolist()),
            kl=float(kl[row[low]]),
        )
        for low, high in zip(starts, [*starts[1:], len(row)], strict=True)
    ]
