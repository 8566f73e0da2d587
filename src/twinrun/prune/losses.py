"""What scorers learn from: saliency made into targets, its mean square error, and the order of pairs.

Source: arXiv:2504.04514, Eq. 4 to 6: `L = L_cls + L_mse + L_r`. The paper sums over all pairs of a stage,
which at 2,048 tokens is two million times the size of the other terms; here every term is a mean (over
tokens, over pairs), so weights of 1 mean something at every length.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from twinrun.errors import ConfigError

Sign = Literal["abs", "signed"]
Scale = Literal["rank", "log", "standard", "none"]
SIGNS: tuple[Sign, ...] = ("abs", "signed")
SCALES: tuple[Scale, ...] = ("rank", "log", "standard", "none")


def keep_value(saliency: Tensor, *, output: str, sign: Sign) -> Tensor:
    """Return how much each token should be kept, from its signed saliency; same shape.

    "abs" is its size. "signed" is, to first order, how much the loss would rise without the token: minus the saliency
    of a loss, the saliency itself of a logit.

    Raises:
        ConfigError: an unknown sign.
    """
    if sign not in SIGNS:
        raise ConfigError(f"unknown sign {sign!r}; use one of {', '.join(SIGNS)}")
    if sign == "abs":
        return saliency.abs()
    return -saliency if output == "loss" else saliency


def normalised(values: Tensor, use: Tensor, scale: Scale) -> Tensor:
    """Return targets `[rows, tokens]` float32, brought to one scale in each row by itself.

    Saliency is heavy-tailed and its size follows the loss of the sample: raw values would let a few tokens of
    a few samples decide everything.

    Args:
        values: `[rows, tokens]`, higher is kept.
        use: `[rows, tokens]` booleans: the tokens that may be dropped. The others get 0 and are not counted.
        scale: "rank": the rank, spread evenly over -sqrt(3) to sqrt(3), so mean 0 and variance 1, equal
            values the mean of their ranks. "log": the logarithm of the size, with its sign left out,
            standardised. "standard": mean 0, variance 1. "none": as they are.

    Raises:
        ConfigError: an unknown scale.

    Example:
        >>> normalised(torch.tensor([[1e-9, 5.0, 2e-9]]), torch.ones(1, 3, dtype=torch.bool), "rank")
        tensor([[-1.7321,  1.7321,  0.0000]])
    """
    if scale not in SCALES:
        raise ConfigError(f"unknown scale {scale!r}; use one of {', '.join(SCALES)}")
    out = torch.zeros_like(values, dtype=torch.float32)
    for row, mask in enumerate(use):
        own = values[row, mask]
        if own.numel():
            out[row, mask] = _scaled(own.double(), scale).float()
    return out


def mse_loss(scores: Tensor, targets: Tensor, use: Tensor) -> Tensor:
    """Mean square error of each row over the tokens in use, `[rows]`; 0 for a row that uses none.

    Args:
        scores: `[rows, tokens]` float.
        targets: same shape.
        use: same shape, booleans.
    """
    squares = (scores - targets).square() * use
    return squares.sum(1) / use.sum(1).clamp_min(1)


def ranking_loss(scores: Tensor, targets: Tensor, use: Tensor, pairs: Tensor) -> Tensor:
    """Mean over pairs of `log(1 + exp(-(s_i - s_j) sign(t_i - t_j)))`, `[rows]`; by softplus, so without overflow.

    Args:
        scores: `[rows, tokens]` float.
        targets: same shape.
        use: same shape, booleans.
        pairs: `[rows, pairs, 2]` int64 columns, from `draw_pairs`. Pairs of equal targets, or with a token
            not in use, say nothing and are not counted; 0 for a row without any other.
    """
    first, second = pairs.unbind(-1)
    sign = (targets.gather(1, first) - targets.gather(1, second)).sign()
    sign = sign * (use.gather(1, first) & use.gather(1, second))
    gap = scores.gather(1, first) - scores.gather(1, second)
    counted = sign != 0
    return (F.softplus(-gap * sign) * counted).sum(1) / counted.sum(1).clamp_min(1)


def draw_pairs(use: Tensor, most: int, generators: list[torch.Generator]) -> Tensor:
    """Columns of pairs of different tokens in use, `[rows, pairs, 2]` int64.

    All pairs where a row has at most `most` of them, else `most` drawn from the row's own generator (with
    replacement). Rows with fewer pairs than the longest repeat their last token with itself, which
    `ranking_loss` does not count.
    """
    rows = [_pairs_of(mask.nonzero()[:, 0].cpu(), most, g) for mask, g in zip(use, generators, strict=True)]
    width = max(max(r.shape[0] for r in rows), 1)
    filled = [torch.cat([r, torch.zeros(width - r.shape[0], 2, dtype=torch.int64)]) for r in rows]
    return torch.stack(filled).to(use.device)


def _pairs_of(columns: Tensor, most: int, generator: torch.Generator) -> Tensor:
    count = columns.numel()
    if count * (count - 1) // 2 <= most:
        return columns[torch.triu_indices(count, count, 1).T]
    first = torch.randint(count, (most,), generator=generator)
    other = (first + torch.randint(1, count, (most,), generator=generator)) % count
    return torch.stack([columns[first], columns[other]], 1)


def _scaled(own: Tensor, scale: Scale) -> Tensor:
    if scale == "rank":
        return _ranks(own)
    if scale == "log":
        size = own.abs()
        own = size.clamp_min(max(float(size.max()) * 1e-9, 1e-300)).log()
    if scale == "none":
        return own
    spread = own.std(correction=0)
    return (own - own.mean()) / spread if spread > 0 else torch.zeros_like(own)


def _ranks(own: Tensor) -> Tensor:
    """Ranks from -sqrt(3) to sqrt(3); equal values share the mean of theirs."""
    if own.numel() < 2:
        return torch.zeros_like(own)
    place: Tensor
    _, place, count = torch.unique(own, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    mean: Tensor = last - (count - 1) / 2 - 1
    found: Tensor = (2 * mean[place] / (own.numel() - 1) - 1) * 3**0.5
    return found
