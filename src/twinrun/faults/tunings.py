"""A fault of contrastive training, as public code of LightReasoner has it (casebook, case 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from twinrun.contrast.lesson import Lesson
from twinrun.faults.fault import Fault, Site, always
from twinrun.faults.parts import attribute
from twinrun.faults.sampling import SOURCE
from twinrun.faults.tuned import TUNED, TunedBatch


def padded_column_trained() -> Fault:
    """A row a step, padded on the right, and of every row the last column."""
    return Fault(
        name="padded-column-trained",
        summary="rows of a batch are padded on the right and all are read at the last column, which stands behind "
        "padding in the shorter ones",
        thread=(SOURCE,),
        kind="runner",
        way="tuning",
        where="rows of logits that the loss reads",
        site=Site("scores"),
        needs=("a batch of unequal rows",),
        runners=(TUNED,),
        reason_against=always,
        plant=_last_column,
    )


@contextmanager
def _last_column(batch: TunedBatch) -> Iterator[None]:
    pad = batch.model.pad_id

    def wrong(module: nn.Module, lessons: Sequence[Lesson]) -> Tensor:
        rows = [lesson.ids[: row + 1] for lesson in lessons for row in lesson.rows]
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = batch.model.device
        logits: Tensor = module(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, -1]
        return logits

    with attribute(batch.forward, "logits_of", wrong):
        yield
