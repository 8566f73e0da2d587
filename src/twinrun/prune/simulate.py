"""Prompt pruning simulated by attention masks, so that a scorer can be trained through it.

Source: arXiv:2504.04514, Eq. 2, after DynamicViT (arXiv:2106.02034, section 3.3): a dropped token stays in
the batch and is masked out as a key for every other token from its layer on; nothing is scaled. Masks are
progressive: what one stage drops, no later one has. What is ours:

- the keep decision is `score - threshold + noise > 0`, the threshold being the one that keeps exactly the
  schedule's budget without noise. A Gumbel-softmax over (score, threshold) is the same thing: the difference
  of two Gumbel variables is a logistic one. The paper's loss has nothing that ties masks to a ratio.
- the gradient of a mask value m enters through a bias of `log(m + exp(-50))` on attention's logits, which
  every model that takes a mask can take. Its derivative at a dropped token is that of DynamicViT's masked
  softmax; what a dropped token still adds, a share of 2e-22, is below the rounding of any precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model
from twinrun.models.positions import as_mask
from twinrun.models.rotary import attention_kind
from twinrun.prune.protection import Protection
from twinrun.prune.refusals import refuse_model
from twinrun.prune.rows import Rows
from twinrun.prune.schedule import Schedule
from twinrun.prune.taps import tapped

FLOOR = 50.0
"""Nats by which a dropped key is lowered."""
Score = Callable[[int, Tensor], Tensor]
"""(layer, hidden states `[rows, tokens, width]`) to scores `[rows, tokens]`; higher is kept."""


@dataclass(slots=True)
class Simulated:
    """What one simulated prefill did.

    Attributes:
        logits: of the answers, as `Rows.logits` returns them.
        scores: at each pruned layer, `[rows, tokens]`.
        choice: at each pruned layer, the tokens that were there and could be dropped, `[rows, tokens]`
            booleans.
        kept: at each pruned layer, the prompt tokens that go on, `[rows, tokens]` booleans.
    """

    logits: Tensor
    scores: dict[int, Tensor] = field(default_factory=dict)
    choice: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """How a hard choice is made trainable.

    Attributes:
        noise: size of the logistic noise on `score - threshold`; 1 is the Gumbel-softmax of DynamicViT.
            Targets have variance 1, logistic noise 3.3: at 1 the noise decides, not the score.
        temperature: of the sigmoid whose derivative stands in for that of the step.
        generators: one for each row.
    """

    noise: float
    temperature: float
    generators: Sequence[torch.Generator]


def simulate(
    model: Model,
    rows: Rows,
    schedule: Schedule,
    protection: Protection,
    score: Score,
    relaxation: Relaxation | None = None,
) -> Simulated:
    """Run one forward of prompts with their answers in which dropped prompt tokens are masked out.

    Args:
        model: full attention in every layer, eager or SDPA.
        rows: the batch.
        schedule: where and how much.
        protection: prompt tokens that are never dropped; answers never are.
        score: called at each stage with the layer's input, detached.
        relaxation: None chooses without noise and without a gradient: exactly the top scores, ties to the
            most recent.

    Raises:
        UnsupportedModelError: sliding windows, or an attention that takes no mask of our own.

    Cost: one unpruned forward, and a mask `[rows, 1, tokens, tokens]`.
    """
    refuse_masks(model)
    schedule.check(len(model.layout.layers))
    stages = _Stages(model, rows, schedule, protection, score, relaxation)
    with tapped(model, range(schedule.layers[0], len(model.layout.layers)), stages.tap):
        logits = rows.logits(model)
    return Simulated(logits, stages.scores, stages.choice, stages.kept)


def refuse_masks(model: Model) -> None:
    """Refuse a model that cannot be pruned, or whose attention cannot be masked from outside.

    Raises:
        UnsupportedModelError: no causal model, sliding windows, compiled, or a kernel without masks.
    """
    if not model.is_causal:
        raise UnsupportedModelError(f"{model.name} is no causal model; prompt pruning needs one")
    refuse_model(model)
    if attention_kind(model.config) not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"{model.name} runs with attention {attention_kind(model.config)!r}, which takes no mask of our own; "
            "load it with attention='sdpa'"
        )


class _Stages:
    """State of one simulated forward."""

    def __init__(
        self,
        model: Model,
        rows: Rows,
        schedule: Schedule,
        protection: Protection,
        score: Score,
        relaxation: Relaxation | None,
    ) -> None:
        self.model, self.rows, self.score, self.relaxation = model, rows, score, relaxation
        lengths = [len(s.prompt) for s in rows.samples]
        budgets = torch.tensor([schedule.kept(n, protection) for n in lengths], device=rows.real.device)
        self.budgets = dict(zip(schedule.layers, budgets.unbind(1), strict=True))
        self.protected = rows.real & ~may_drop(rows, protection)
        self.alive = rows.real
        self.keep: Tensor = rows.real.float()
        """Mask values, 1 or 0, with the gradient of every choice so far."""
        self.mask: Any = None
        self.scores: dict[int, Tensor] = {}
        self.choice: dict[int, Tensor] = {}
        self.kept: dict[int, Tensor] = {}

    def tap(self, layer: int, hidden: Tensor, named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        if layer in self.budgets:
            self._choose(layer, hidden.detach())
            self.mask = self._mask(hidden.dtype)
        return hidden, {**named, "attention_mask": self.mask}

    def _choose(self, layer: int, hidden: Tensor) -> None:
        scores = self.score(layer, hidden)
        choice = self.alive & ~self.protected
        room = self.budgets[layer] - (self.protected & self.rows.prompt).sum(1)
        top, threshold = top_scores(scores.detach(), choice, room)
        if self.relaxation is None:
            keep = top.float()
        else:
            keep = _straight_through(scores - threshold[:, None], choice, self.relaxation)
        self.scores[layer], self.choice[layer] = scores, choice
        self.keep = torch.where(choice, self.keep * keep, self.keep)
        self.alive = self.alive & (self.protected | (keep.detach() > 0.5))
        self.kept[layer] = self.alive & self.rows.prompt

    def _mask(self, dtype: torch.dtype) -> Tensor:
        width = self.alive.shape[1]
        past = torch.ones(width, width, dtype=torch.bool, device=self.alive.device).tril()
        itself = torch.eye(width, dtype=torch.bool, device=self.alive.device)
        if self.relaxation is None:
            return as_mask(self.model, (past & self.alive[:, None, None]) | itself)
        lowest, wide = torch.finfo(dtype).min, torch.promote_types(dtype, torch.float32)
        hidden = torch.zeros(self.alive.shape[0], 1, width, width, dtype=wide, device=self.alive.device)
        hidden = hidden.masked_fill(~(past & self.rows.real[:, None, None]) & ~itself, lowest)
        bias = (self.keep.to(wide) + math.exp(-FLOOR)).log()[:, None, None]
        return (hidden + torch.where(itself, 0.0, bias)).clamp_min(lowest).to(dtype)


def may_drop(rows: Rows, protection: Protection) -> Tensor:
    """Prompt tokens that a stage may drop: all but the protected ones; `[rows, tokens]` booleans."""
    positions = rows.padded.positions
    lengths = [len(s.prompt) for s in rows.samples]
    last = torch.tensor([n - protection.last_tokens(n) for n in lengths], device=positions.device)[:, None]
    return rows.prompt & (positions >= protection.first) & (positions < last)


def top_scores(scores: Tensor, choice: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """The `room` highest scores of each row among `choice`, equal ones the most recent first.

    Returns:
        `[rows, tokens]` booleans, and the threshold `[rows]` halfway between the last in and the first out;
        infinite where none or all are in.
    """
    ranked = scores.masked_fill(~choice, -torch.inf)
    width = scores.shape[1]
    order = width - 1 - ranked.flip(1).argsort(dim=1, descending=True, stable=True)
    room = room.clamp_min(0).minimum(choice.sum(1))[:, None]
    place = torch.arange(width, device=scores.device)[None]
    top = torch.zeros_like(choice).scatter(1, order, place < room) & choice
    by_rank = ranked.gather(1, order)
    ends = torch.nn.functional.pad(by_rank, (1, 1), value=-torch.inf)
    ends[:, 0] = torch.inf
    inside, outside = ends.gather(1, room)[:, 0], ends.gather(1, room + 1)[:, 0]
    halfway = torch.where(torch.isinf(outside), outside, (inside + outside) / 2)
    return top, torch.where(torch.isinf(inside), inside, halfway)


def _straight_through(margin: Tensor, choice: Tensor, relaxation: Relaxation) -> Tensor:
    """1 or 0 by the sign of margin plus noise; the gradient of a sigmoid in place of the step's."""
    noise = torch.zeros_like(margin)
    for row, generator in enumerate(relaxation.generators):
        count = int(choice[row].sum())
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        noise[row, choice[row]] = relaxation.noise * uniform.logit().to(margin)
    soft = torch.sigmoid((margin + noise) / relaxation.temperature)
    hard = (margin + noise > 0).to(soft.dtype)
    return hard + soft - soft.detach()
