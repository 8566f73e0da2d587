"""Proposals: for each open position a token, and how probable the model finds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Logits that exist at one time, counted in float64: 66 rows of LLaDA's 126,464 tokens."""


def propose(
    logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Choose a token for every row of logits, and give its probability.

    Greedy, or with a temperature T an exact draw of softmax(logits / T) by the Gumbel-max trick in float64:
    argmax(logits / T - log E) with E drawn from an exponential distribution. The probability is that of
    softmax(logits), without noise and temperature, also for drawn tokens.

    Source: Nie et al. 2025, arXiv:2502.09992, section 2.4; confidence without noise as in its published code.

    Args:
        logits: `[n, vocab]`; a banned token has -inf.
        temperature: 0 is greedy.
        generator: of the noise, on the device of the logits.

    Returns:
        Tokens `[n]` int64 and probabilities `[n]` float64. The probability is 1 / (1 + s), s being the sum of
        exp(logit - chosen logit) over the other tokens in float32 (float64 for float64 logits): 1 - p keeps its
        seven digits also where p is next to 1, so sure tokens are still told apart.

    Cost: two passes over the logits; with a temperature a draw of `[n, vocab]` float64.

    Example:
        >>> propose(torch.tensor([[0.0, 1.0986123]]))
        (tensor([1]), tensor([0.7500], dtype=torch.float64))
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if temperature > 0:
        noise = torch.empty(wide.shape, dtype=torch.float64, device=wide.device)
        noise.exponential_(generator=generator).log_()
        tokens = (wide.double() / temperature - noise).argmax(-1, keepdim=True)
        top = wide.gather(1, tokens)
    else:
        top, tokens = wide.max(-1, keepdim=True)
    others = (wide - top).exp_().scatter_(1, tokens, 0.0).sum(-1)
    return tokens[:, 0], 1 / (1 + others.double())


def chunks(counts: Sequence[int], vocab: int, *, by_row: bool) -> Iterator[tuple[int, slice]]:
    """Cut positions, sorted by row, into pieces whose logits fit `CHUNK_BYTES`; yields (row, positions).

    With `by_row` no piece holds positions of two rows, and where a row is cut depends on nothing but the vocabulary,
    so that its noise is the same in any batch.
    """
    size = max(1, CHUNK_BYTES // (8 * vocab))
    first = 0
    for row, count in enumerate(counts if by_row else [sum(counts)]):
        for start in range(first, first + count, size):
            yield row, slice(start, min(start + size, first + count))
        first += count
