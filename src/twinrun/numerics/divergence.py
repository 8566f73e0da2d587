"""Full-vocabulary statistics of one or two streams of logits: KL, entropy, log-probability, top-k. Float32 softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twinrun.errors import ShapeError
from twinrun.numerics.blocks import BLOCK_BYTES, LogitRows, log_softmax, row_blocks
from twinrun.numerics.logits_policy import LogitsPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStats:
    """Per-position numbers of one stream of logits, in nats; `top_*` are `[rows, k]`, sorted from the likeliest."""

    logprob: Tensor
    entropy: Tensor
    top_ids: Tensor
    top_logprob: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """KL(p || q) per position in nats, over the `shared_vocab` first ids; what lies beyond is reported as mass."""

    kl: Tensor
    shared_vocab: int
    dropped_mass_p: Tensor
    dropped_mass_q: Tensor


def token_stats(
    source: LogitRows,
    next_ids: Tensor,
    top_k: int = 5,
    block_bytes: int = BLOCK_BYTES,
    policy: LogitsPolicy | None = None,
) -> TokenStats:
    """Score `next_ids` under a stream of logits, one block of positions at a time.

    Args:
        source: `num_rows` rows of logits.
        next_ids: `[rows]` int64, the token each row should predict; -1 where there is none (its
            log-probability is NaN).
        top_k: alternatives kept a position, at least 1; capped at the vocabulary.
        block_bytes: float32 bytes of one block, where the policy sets no number of rows.
        policy: block and precision of the softmax; which rows are kept is the source's business.

    Returns:
        Numbers of every row, on the device of `next_ids`.

    Raises:
        ShapeError: `next_ids` has another length than `source` has rows.

    Cost: one block of float32 at a time; O(rows * vocab) work.
    """
    if next_ids.shape != (source.num_rows,):
        raise ShapeError(
            f"next_ids has shape {tuple(next_ids.shape)}, the source has {source.num_rows} rows; "
            "give one id a row"
        )
    policy = policy or LogitsPolicy()
    block_bytes = policy.block_bytes(source.vocab_size, block_bytes)
    k = min(top_k, source.vocab_size)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for rows, (logits,) in row_blocks(source, block_bytes=block_bytes):
        logp = log_softmax(logits, policy.softmax_dtype)
        want = next_ids[rows].to(logp.device)
        picked = logp.gather(1, want.clamp_min(0)[:, None])[:, 0]
        top = logp.topk(k, dim=-1)
        entropy = -torch.linalg.vecdot(logp.exp(), logp.clamp_min(torch.finfo(logp.dtype).min))
        parts.append((picked.masked_fill(want < 0, torch.nan), entropy, top.indices, top.values))
    if not parts:
        empty = torch.empty(0)
        return TokenStats(
            logprob=empty,
            entropy=empty,
            top_ids=torch.empty(0, k, dtype=torch.long),
            top_logprob=torch.empty(0, k),
        )
    logprob, entropy, ids, values = (
        torch.cat(column).to(next_ids.device) for column in zip(*parts, strict=True)
    )
    return TokenStats(logprob=logprob, entropy=entropy, top_ids=ids, top_logprob=values)


def kl_divergence(p: LogitRows, q: LogitRows, block_bytes: int = BLOCK_BYTES) -> Divergence:
    """KL(p || q) at every position, without ever holding `[positions, vocab]`.

    Two heads of unequal width (padding rows of a vocabulary) are compared on the ids that both have: each
    distribution is renormalised over them and the mass that lay outside is returned.

    Args:
        p: rows of logits of the side that the expectation is taken under.
        q: rows of logits of the other side; the same number of rows.
        block_bytes: float32 bytes of one block of one side.

    Raises:
        ShapeError: unequal numbers of rows.

    Cost: two float32 blocks at a time.

    Example:
        >>> from twinrun.numerics.blocks import StoredLogits
        >>> kl_divergence(StoredLogits(torch.zeros(1, 2)), StoredLogits(torch.tensor([[0.0, 0.0]]))).kl
        tensor([0.])
    """
    if p.num_rows != q.num_rows:
        raise ShapeError(f"KL needs the same positions on both sides, got {p.num_rows} and {q.num_rows} rows")
    shared = min(p.vocab_size, q.vocab_size)
    kl, mass_p, mass_q = [torch.empty(0)], [torch.empty(0)], [torch.empty(0)]
    for _, (logits_p, logits_q) in row_blocks(p, q, block_bytes=block_bytes):
        logp, out_p = restrict(log_softmax(logits_p), shared)
        logq, out_q = restrict(log_softmax(logits_q), shared)
        kl.append(kl_of_rows(logp, logq).cpu())
        mass_p.append(out_p.cpu())
        mass_q.append(out_q.cpu())
        del logp, logq  # before the next block makes new ones
    return Divergence(
        kl=torch.cat(kl),
        shared_vocab=shared,
        dropped_mass_p=torch.cat(mass_p),
        dropped_mass_q=torch.cat(mass_q),
    )


def kl_of_rows(logp: Tensor, logq: Tensor) -> Tensor:
    """KL of rows of log-probabilities `[rows, vocab]`, summed in their precision; `logp` and `logq` are consumed.

    Ids that p gives no mass add nothing, whatever q says of them.
    """
    gap, p = logq.sub_(logp), logp.exp_()
    kl: Tensor = 0.0 - torch.linalg.vecdot(p, gap)
    if torch.isnan(kl).any():  # 0 * inf: rare, and a pass over the block that is worth saving otherwise
        kl = 0.0 - torch.linalg.vecdot(p, gap.masked_fill_(p == 0, 0.0))
    return kl


def restrict(logp: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """Renormalise log-probabilities `[rows, vocab]` over the first `shared` ids; also return the mass of the others."""
    if logp.shape[-1] == shared:
        return logp, torch.zeros(logp.shape[0], device=logp.device)
    kept = logp[:, :shared].logsumexp(-1, keepdim=True)
    return logp[:, :shared] - kept, (-torch.expm1(kept[:, 0])).clamp_min(0)
