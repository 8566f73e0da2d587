"""Teacher-forced scores of a diffusion model: a text is committed in a fixed order, and each forward is asked about it.

The order depends on nothing that the model says: blocks left to right, inside a block left to right, so many tokens a
step as the quota says (one, if the commit rule is no quota). The score of a token is the logits of its position in
the step that commits it, when everything before it and nothing behind it in its step's block was known.
"""

from __future__ import annotations

import itertools
import time

import torch

from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.chooser import Chooser
from twinrun.diffusion.commit import Quota
from twinrun.diffusion.passes import Passes
from twinrun.diffusion.settings import DiffusionSettings
from twinrun.models.parts import Parts
from twinrun.records.scores import Scores
from twinrun.runners.forward import HiddenRows


def score_rows(
    parts: Parts,
    settings: DiffusionSettings,
    rows: list[list[int]],
    starts: list[int],
    *,
    mask_id: int,
    lead: int,
) -> list[Scores]:
    """Score `rows[i][starts[i]:]` and the token behind the end, all rows together.

    The canvas has one mask more than the text: its logits are those of the token behind the end.

    Returns:
        One `Scores` a row: row p of it predicts the token at position p + 1.
    """
    began = time.perf_counter()
    model = parts.model
    rooms = [len(row) - start + 1 for row, start in zip(rows, starts, strict=True)]
    prompts = [row[:start] for row, start in zip(rows, starts, strict=True)]
    canvas = Canvas.of(prompts, rooms, mask_id=mask_id, pad_id=model.pad_id, device=model.device)
    texts = [row[start:] for row, start in zip(rows, starts, strict=True)]
    most = max(rooms)
    truth = torch.tensor([t + [mask_id] * (most - len(t)) for t in texts], device=model.device)
    passes = Passes(parts, settings, lead=lead)
    chooser = Chooser(parts=parts, settings=settings, mask_id=mask_id)
    found = []
    quota = settings.commit if isinstance(settings.commit, Quota) else Quota()
    for block in canvas.blocks(settings.block_length):
        board = passes.begin(canvas, block)
        first, size = block.start, block.stop - block.start
        for step in itertools.count():
            if first == block.stop:
                break
            feed, passed = passes.step(step)
            if passes.forward.wants_confidence:
                chooser.update(board, feed, passed, canvas.open[:, block].cpu())
            stop = min(block.stop, first + quota.count(step, size))
            shift = feed.rows.start - block.start
            found.append(parts.normed(passed.hidden[:, first + shift : stop + shift]))
            _commit(passes, truth[:, block.start - canvas.start :], first, stop)
            first = stop
    features = torch.cat(found, dim=1)
    seconds = (time.perf_counter() - began) / len(rows)
    path = f"masks filled in left to right, {passes.full} full and {passes.partial} partial forwards"
    return [
        Scores(
            tokens=tuple(row),
            positions=torch.arange(start - 1, len(row)),
            logits=HiddenRows(model, features[i, :room].clone()),
            seconds=seconds,
            path=path,
        )
        for i, (row, start, room) in enumerate(zip(rows, starts, rooms, strict=True))
    ]


def _commit(passes: Passes, truth: torch.Tensor, first: int, stop: int) -> None:
    """Write the text into canvas columns `first` to `stop` of the block; `truth` begins with the block.

    The mask behind the end of a row stays what it is.
    """
    block = passes.block
    chosen = torch.zeros_like(passes.board.chosen)
    chosen[:, first - block.start : stop - block.start] = True
    chosen &= passes.canvas.open[:, block]
    passes.commit(chosen, truth[:, : block.stop - block.start])
