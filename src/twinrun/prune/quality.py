"""How well scorers predict saliency, and what a choice of tokens does to answers: held-out numbers for a model card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from twinrun.models.model import Model
from twinrun.prune.losses import Sign, keep_value, normalised
from twinrun.prune.protection import Protection
from twinrun.prune.rows import Rows
from twinrun.prune.samples import Sample
from twinrun.prune.schedule import Schedule
from twinrun.prune.simulate import Score, may_drop, simulate, top_scores
from twinrun.prune.taps import Enough, tapped
from twinrun.prune.targets import Targets
from twinrun.runners.score import length_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuality:
    """Scores of one layer against stored saliency, over the tokens that may be dropped; means over samples.

    Attributes:
        spearman: rank correlation, -1 to 1.
        overlap: share of the highest targets that are among the highest scores, as many as the schedule keeps there.
        chance: the overlap of a random choice.
    """

    layer: int
    samples: int
    spearman: float
    overlap: float
    chance: float


def layer_quality(
    model: Model,
    samples: Sequence[Sample],
    targets: Targets,
    schedule: Schedule,
    score: Score,
    *,
    protection: Protection | None = None,
    sign: Sign = "abs",
) -> list[LayerQuality]:
    """Compare scores on the hidden states of the unpruned prompt with stored saliency, layer by layer.

    Args:
        model: whose hidden states are scored.
        samples: held out from training; each must have a target.
        targets: their saliency.
        schedule: its layers, and how many tokens count as the highest.
        score: `scorer.score`, or another (layer, hidden) -> `[rows, tokens]`.
        protection: tokens left out of the comparison; None is the paper's.
        sign: of the saliency.

    Cost: one forward up to the last pruned layer for every sample.
    """
    guard = protection or Protection()
    lists: dict[int, list[list[float]]] = {layer: [[], [], []] for layer in schedule.layers}
    for rows, inputs in hidden_states(model, samples, schedule.layers):
        choice = may_drop(rows, guard)
        budgets = [schedule.kept(len(s.prompt), guard) for s in rows.samples]
        for stage, layer in enumerate(schedule.layers):
            scores = score(layer, inputs[layer]).float().cpu()
            for row, sample in enumerate(rows.samples):
                use = choice[row].cpu()
                stored = targets.of(sample)[targets.layers.index(layer)]
                wanted = torch.zeros(use.shape)
                wanted[rows.prompt[row].cpu()] = keep_value(
                    stored, output=targets.request["output"], sign=sign
                )
                room = budgets[row][stage] - guard.tokens(len(sample.prompt))
                for into, number in zip(
                    lists[layer], _agreement(scores[row], wanted, use, room), strict=True
                ):
                    into.append(number)
    return [
        LayerQuality(layer=layer, samples=len(a), spearman=fmean(a), overlap=fmean(b), chance=fmean(c))
        for layer, (a, b, c) in lists.items()
    ]


def hidden_states(
    model: Model, samples: Sequence[Sample], layers: Sequence[int], batch_size: int = 8
) -> Iterator[tuple[Rows, dict[int, Tensor]]]:
    """Yield batches with the input of each of `layers`; layers behind the last do not run."""
    for chunk in length_batches([[*s.prompt, *s.answer] for s in samples], batch_size):
        rows = Rows.of([samples[i] for i in chunk], model)
        kept: dict[int, Tensor] = {}

        def tap(layer: int, hidden: Tensor, _named: dict[str, Any], kept: dict[int, Tensor] = kept) -> None:
            kept[layer] = hidden.clone()
            if layer == layers[-1]:
                raise Enough

        try:
            with torch.no_grad(), tapped(model, layers, tap):
                rows.logits(model)
        except Enough:
            pass
        yield rows, kept


def exact_answers(
    model: Model,
    samples: Sequence[Sample],
    schedule: Schedule | None,
    score: Callable[[Rows], Score],
    *,
    protection: Protection | None = None,
    batch_size: int = 8,
) -> dict[str, bool]:
    """For each sample, whether greedy decoding from the pruned prompt gives exactly its answer.

    Teacher-forced: every answer token is the most likely one behind the right ones before it, which is the same thing
    and takes one forward.

    Args:
        model: full attention in every layer.
        samples: prompts with right answers.
        schedule: None prunes nothing.
        score: gives the scores of a batch: (rows) -> (layer, hidden) -> `[rows, tokens]`.
        protection: None is the paper's.
        batch_size: samples a forward.

    Returns:
        Sample name to whether it is right.

    Cost: one unpruned forward a sample; pruning is simulated by masks (`twinrun.prune.simulate`).
    """
    found: dict[str, bool] = {}
    for chunk in length_batches([[*s.prompt, *s.answer] for s in samples], batch_size):
        rows = Rows.of([samples[i] for i in chunk], model)
        with torch.no_grad():
            if schedule is None:
                logits = rows.logits(model)
            else:
                logits = simulate(model, rows, schedule, protection or Protection(), score(rows)).logits
        ids, real = rows.answer_ids()
        right = ((logits[:, :-1].argmax(-1) == ids) | ~real).all(1)
        found |= {s.name: bool(r) for s, r in zip(rows.samples, right, strict=True)}
    return found


def _agreement(scores: Tensor, wanted: Tensor, use: Tensor, room: int) -> tuple[float, float, float]:
    """Spearman's correlation, overlap of the `room` highest, and its expectation by chance."""
    pair = torch.stack([scores, wanted])
    ranks = normalised(pair, use.expand(2, -1), "rank")[:, use].double()
    spread = ranks.square().sum(1).sqrt().prod()
    spearman = float((ranks[0] * ranks[1]).sum() / spread) if spread > 0 else 0.0
    count = int(use.sum())
    room = min(max(room, 0), count)
    if room == 0:
        return spearman, 1.0, 1.0
    top, _ = top_scores(pair, use.expand(2, -1), torch.tensor([room, room]))
    return spearman, float((top[0] & top[1]).sum()) / room, room / max(count, 1)
