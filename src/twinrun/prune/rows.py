"""A batch of samples as the model takes it: left-padded, the loss on answer tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twinrun.models.model import Model
from twinrun.prune.samples import Sample
from twinrun.runners.forward import Padded, forward


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples side by side: `[padding | prompt | answer]`, all ending in the same column.

    Attributes:
        samples: in row order.
        padded: ids, mask and positions `[rows, width]`.
        prompt: `[rows, width]` booleans: the tokens that are scored and may be pruned.
        real: `[rows, width]` booleans, False in padding.
    """

    samples: tuple[Sample, ...]
    padded: Padded
    prompt: Tensor
    real: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], model: Model) -> Rows:
        """Pad samples on the left, on the model's device."""
        padded = Padded.of([[*s.prompt, *s.answer] for s in samples], model.pad_id, model.device)
        width = padded.ids.shape[1]
        slots = torch.arange(width, device=model.device)[None]
        length = torch.tensor([len(s) for s in samples], device=model.device)[:, None]
        answer = torch.tensor([len(s.answer) for s in samples], device=model.device)[:, None]
        real = slots >= width - length
        return cls(tuple(samples), padded, real & (slots < width - answer), real)

    def logits(self, model: Model) -> Tensor:
        """Logits `[rows, longest answer + 1, vocab]` of the last columns, by one forward of the model itself."""
        longest = max(len(s.answer) for s in self.samples)
        p = self.padded
        return forward(model, p.ids, mask=p.mask, positions=p.position_ids, last=longest + 1)

    def answer_ids(self) -> tuple[Tensor, Tensor]:
        """Ids of the answers `[rows, longest answer]`, right-aligned, and where they are real."""
        longest = max(len(s.answer) for s in self.samples)
        ids = self.padded.ids[:, -longest:]
        count = torch.tensor([len(s.answer) for s in self.samples], device=ids.device)[:, None]
        return ids, torch.arange(longest, device=ids.device)[None] >= longest - count

    def losses(self, logits: Tensor) -> Tensor:
        """Mean negative log-likelihood of each row's answer tokens, `[rows]` nats, at least float32; differentiable."""
        ids, real = self.answer_ids()
        each = F.cross_entropy(_wide(logits[:, :-1]).transpose(1, 2), ids, reduction="none")
        return (each * real).sum(1) / real.sum(1)

    def answer_logits(self, logits: Tensor) -> Tensor:
        """Mean logit of each row's answer tokens, `[rows]`, at least float32; differentiable."""
        ids, real = self.answer_ids()
        each = _wide(logits[:, :-1]).gather(2, ids[..., None])[..., 0]
        return (each * real).sum(1) / real.sum(1)


def _wide(logits: Tensor) -> Tensor:
    """Half precisions as float32; the others as they are."""
    return logits.float() if logits.dtype.itemsize < 4 else logits
