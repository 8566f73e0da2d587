"""Contrastive fine-tuning the slow way: one forward a tuned token, dense labels. Nothing of it is twinrun's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def dense(label: tuple[Sequence[int], Sequence[float]], vocab: int, dtype: torch.dtype) -> Tensor:
    """A label as a whole row of the vocabulary."""
    row = torch.zeros(vocab, dtype=dtype)
    for token, weight in zip(*label, strict=True):
        row[token] += weight
    return row


def kl(label: Tensor, logits: Tensor) -> Tensor:
    """KL(label || softmax(logits)) of one row, term by term."""
    logp = logits - logits.max() - (logits - logits.max()).exp().sum().log()
    total = logits.new_zeros(())
    for token in label.nonzero()[:, 0].tolist():
        total = total + label[token] * (label[token].log() - logp[token])
    return total


def row_per_step_loss(module: nn.Module, lessons: Sequence[Any]) -> Tensor:
    """Mean over all tuned tokens; each is the last token's prediction of a forward over its own prefix."""
    losses = []
    for lesson in lessons:
        for step, label in zip(lesson.steps, lesson.labels, strict=True):
            prefix = torch.tensor([list(lesson.ids[: lesson.start + step])])
            logits = module(input_ids=prefix).logits[0, -1]
            losses.append(kl(dense(label, logits.shape[-1], logits.dtype), logits))
    return torch.stack(losses).mean()


def last_column_logits(module: nn.Module, lessons: Sequence[Any], pad: int = 0) -> Tensor:
    """What the public trainer reads: one row a step, padded on the right, and of each row the last column."""
    prefixes = [list(x.ids[: x.start + step]) for x in lessons for step in x.steps]
    width = max(map(len, prefixes))
    ids = torch.tensor([p + [pad] * (width - len(p)) for p in prefixes])
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prefixes])
    logits: Tensor = module(input_ids=ids, attention_mask=mask).logits[:, -1]
    return logits


def last_column_loss(module: nn.Module, lessons: Sequence[Any]) -> Tensor:
    """The loss on those."""
    logits = last_column_logits(module, lessons)
    labels = [label for lesson in lessons for label in lesson.labels]
    rows = [
        kl(dense(label, row.shape[-1], row.dtype), row) for label, row in zip(labels, logits, strict=True)
    ]
    return torch.stack(rows).mean()
