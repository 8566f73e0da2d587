"""The loss of contrastive training: KL of a sparse soft label against the model, at the chosen positions only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinrun.contrast.lesson import Packed
from twinrun.numerics.blocks import log_softmax


def soft_kl(logits: Tensor, label_ids: Tensor, label_weights: Tensor) -> Tensor:
    """KL(label || softmax(logits)) of every row, in nats, in float32 (float64 logits stay float64).

    Source: LightReasoner (arXiv:2510.07962), the loss KL(v_C || E_theta). Its gradient is that of the cross entropy.

    Args:
        logits: `[steps, vocab]`.
        label_ids: `[steps, k]` int64; ids with weight 0 are fillers.
        label_weights: `[steps, k]`, each row sums to 1.

    Returns:
        `[steps]`.

    Cost: two tables `[steps, vocab]` of float32, one of them kept for the gradient.

    Example:
        >>> float(soft_kl(torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]])))
        0.0
    """
    logp = log_softmax(logits).gather(-1, label_ids)
    weights = label_weights.to(logp.dtype)
    # A filler may stand on an id of probability 0, and 0 * -inf is no number.
    logp = logp.masked_fill(weights == 0, 0.0)
    entropy: Tensor = torch.special.xlogy(weights, weights).sum(-1)
    return entropy - (weights * logp).sum(-1)


def chosen_logits(module: nn.Module, batch: Packed, *, together: bool = True, keeps: bool = True) -> Tensor:
    """Logits `[steps, vocab]` at the chosen positions of a packed batch; the head sees no other position.

    Args:
        module: a transformers causal LM, adapted, compiled or wrapped as it may be.
        batch: lessons behind one another.
        together: one forward for the whole row, for models that keep packed texts apart (`check_lessons` says so);
            otherwise one forward a text.
        keeps: whether the forward takes `logits_to_keep`; otherwise the logits of all positions are made first.

    Cost: one forward over all tokens, each text once.
    """
    if not together:
        return torch.cat([_logits(module, part, keeps) for part in apart(batch)])
    return _logits(module, batch, keeps)


def _logits(module: nn.Module, batch: Packed, keeps: bool) -> Tensor:
    given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if not keeps:
        logits: Tensor = module(**given).logits
        return logits[0, batch.rows]
    kept: Tensor = module(**given, logits_to_keep=batch.rows).logits
    return kept[0]


def apart(batch: Packed) -> list[Packed]:
    """The texts of a packed batch, each alone."""
    found = []
    for low, high in batch.bounds:
        mine = (batch.rows >= low) & (batch.rows < high)
        found.append(
            Packed(
                input_ids=batch.input_ids[:, low:high],
                position_ids=batch.position_ids[:, low:high],
                rows=batch.rows[mine] - low,
                label_ids=batch.label_ids[mine],
                label_weights=batch.label_weights[mine],
            )
        )
    return found
