"""Numbers of one aligned row: errors of both sides against the oracle, KL, top-1, one block of positions at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from twinrun.numerics.blocks import block_bounds
from twinrun.numerics.divergence import kl_of_rows
from twinrun.records.scores import Scores

MEASURE_BYTES = 48 * 2**20
"""Bytes of one float32 block here. Larger than for scoring: an oracle casts the head up once a block."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One entry a position. Errors are of log-probabilities, over the whole vocabulary, in nats."""

    position: Tensor
    err_ref_max: Tensor
    err_ref_ss: Tensor
    err_cand_max: Tensor
    err_cand_ss: Tensor
    gap_up_max: Tensor
    """Candidate against reference, both one precision up; NaN where the candidate could not be raised,
    infinite where it gives NaN there."""
    kl: Tensor
    top1_ref: Tensor
    top1_cand: Tensor
    margin: Tensor
    """Oracle's log-probability gap between its two likeliest tokens."""
    dp: Tensor
    """Candidate's minus reference's probability of the token that follows; NaN after the last."""
    logit_size: Tensor
    """Largest absolute finite logit of the reference."""
    same_bits: Tensor
    ref_finite: Tensor
    cand_finite: Tensor
    router_tie: Tensor
    """A router chose other experts than the oracle's somewhere up to here, on a gap inside its noise."""
    vocab: int

    @classmethod
    def cat(cls, parts: list[Measured]) -> Measured:
        """Join along positions."""
        joined = {
            f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls) if f.name != "vocab"
        }
        return cls(**joined, vocab=parts[0].vocab)

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.position)


def measure(
    ref: Scores, cand: Scores, oracle: Scores, cand_up: Scores | None, router_tie: Tensor
) -> Measured:
    """Measure one aligned row.

    Args:
        ref: reference in the deployed precision.
        cand: candidate in the deployed precision.
        oracle: reference one precision up.
        cand_up: candidate one precision up, or None.
        router_tie: `[rows]` flags from `twinrun.verify.routing`.

    Cost: four blocks of logits at a time, in the oracle's precision.
    """
    blocks = []
    for start, stop in block_bounds(ref.logits.num_rows, ref.logits.vocab_size, MEASURE_BYTES):
        up = None if cand_up is None else cand_up.logits.rows(start, stop)
        rows = (
            ref.logits.rows(start, stop),
            cand.logits.rows(start, stop),
            oracle.logits.rows(start, stop),
            up,
        )
        blocks.append(
            _block(
                *rows,
                ref.next_ids[start:stop],
                ref.positions[start:stop],
                router_tie[start:stop],
            )
        )
    return Measured.cat(blocks)


def _block(
    ref: Tensor,
    cand: Tensor,
    oracle: Tensor,
    up: Tensor | None,
    next_ids: Tensor,
    position: Tensor,
    router_tie: Tensor,
) -> Measured:
    same_bits = _rows_equal(ref, cand)
    logp_oracle = _log_softmax(oracle, oracle.dtype)
    logp_ref, logp_cand = _log_softmax(ref, oracle.dtype), _log_softmax(cand.to(ref.device), oracle.dtype)
    err_ref, err_cand = _gap(logp_ref, logp_oracle), _gap(logp_cand, logp_oracle)
    top2 = logp_oracle.topk(min(2, logp_oracle.shape[-1]), dim=-1).values
    following = next_ids.clamp_min(0)[:, None].to(ref.device)
    dp = (logp_cand.gather(1, following).exp() - logp_ref.gather(1, following).exp())[:, 0]
    if up is None:
        gap_up = torch.full_like(dp, torch.nan)
    else:
        gap_up = _gap(_log_softmax(up.to(ref.device), oracle.dtype), logp_oracle).abs().amax(-1)
        gap_up = gap_up.nan_to_num(nan=torch.inf, posinf=torch.inf)
    top1_ref, top1_cand = logp_ref.argmax(-1), logp_cand.argmax(-1)
    columns = {
        "err_ref_max": err_ref.abs().amax(-1),
        "err_ref_ss": err_ref.square().sum(-1),
        "err_cand_max": err_cand.abs().amax(-1),
        "err_cand_ss": err_cand.square().sum(-1),
        "gap_up_max": gap_up,
        "kl": kl_of_rows(logp_ref, logp_cand).clamp_min(0),
        "top1_ref": top1_ref,
        "top1_cand": top1_cand,
        "margin": top2[:, 0] - top2[:, -1],
        "dp": dp.masked_fill(next_ids.to(ref.device) < 0, torch.nan),
        "logit_size": ref.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().amax(-1),
        "same_bits": same_bits,
        "ref_finite": ~torch.isnan(ref).any(-1),
        "cand_finite": ~torch.isnan(cand).any(-1),
    }
    wide = {k: v.cpu().double() if v.is_floating_point() else v.cpu() for k, v in columns.items()}
    return Measured(position=position, **wide, router_tie=router_tie, vocab=ref.shape[-1])


def _log_softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.log_softmax(logits.to(dtype), dim=-1)


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """Difference of log-probabilities; ids that both sides exclude (-inf) do not differ."""
    return (a - b).masked_fill(torch.isneginf(a) & torch.isneginf(b), 0.0)


def _rows_equal(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != b.dtype:
        return torch.zeros(a.shape[0], dtype=torch.bool, device=a.device)
    return (a == b.to(a.device)).all(-1)
