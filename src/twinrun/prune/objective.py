"""The loss terms of some samples: language model, mean square error, ranking; each term of each layer by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.prune.losses import draw_pairs, keep_value, mse_loss, normalised, ranking_loss
from twinrun.prune.rows import Rows
from twinrun.prune.samples import Sample
from twinrun.prune.scorer import Scorer
from twinrun.prune.settings import TrainSettings
from twinrun.prune.simulate import Relaxation, may_drop, simulate
from twinrun.prune.taps import Enough, tapped
from twinrun.prune.targets import Targets


@dataclass(slots=True)
class Terms:
    """Losses of some rows.

    Attributes:
        values: "lm", "mse/4", "rank/4", ... to `[rows]`, unweighted.
        kept: share of the prompt that went on at each layer, mean of the rows.
    """

    values: dict[str, Tensor]
    kept: dict[int, float] = field(default_factory=dict)


class Objective:
    """Computes loss terms; holds the model, the scorer in training and the targets.

    A scorer sees hidden states detached: each layer's MLP learns from its own targets, and from the language-model
    loss through what its choice masks, not through what earlier choices did to its input.
    """

    def __init__(
        self, model: Model, scorer: Scorer, targets: Targets | None, settings: TrainSettings
    ) -> None:
        """Check that scorer and targets know the layers of the schedule."""
        self.model, self.scorer, self.targets, self.settings = model, scorer, targets, settings
        layers = settings.schedule.layers
        for name, known in (("scorer", scorer.layers), ("targets", targets.layers if targets else layers)):
            missing = next((layer for layer in layers if layer not in known), None)
            if missing is not None:
                raise ConfigError(
                    f"the schedule prunes at layer {missing} and the {name} know {', '.join(map(str, known))}; make "
                    "both for the same layers"
                )

    def terms(self, samples: Sequence[Sample], step: int) -> Terms:
        """All terms of some samples; noise and pairs depend on (seed, step, sample) only."""
        rows = Rows.of(samples, self.model)
        if self.settings.offline:
            return self._offline(rows, step)
        relaxation = Relaxation(
            noise=self.settings.noise,
            temperature=self.settings.temperature,
            generators=self._generators(rows, step, "noise"),
        )
        s = self.settings
        done = simulate(self.model, rows, s.schedule, s.protection, self.scorer.score, relaxation)
        found = {"lm": rows.losses(done.logits)} if s.lm_weight else {}
        for layer in s.schedule.layers:
            found |= self._saliency_terms(rows, layer, done.scores[layer], done.choice[layer], step)
        prompt = rows.prompt.sum(1)
        kept = {layer: float((mask.sum(1) / prompt).mean()) for layer, mask in done.kept.items()}
        return Terms(found, kept)

    def target_of(self, sample: Sample) -> Tensor:
        """Stored saliency `[layers, prompt tokens]`; refused unless it was computed for exactly these tokens."""
        assert self.targets is not None
        return self.targets.of(sample)

    def _offline(self, rows: Rows, step: int) -> Terms:
        """Regression on the hidden states of the unpruned prompt; layers behind the last stage do not run."""
        layers, inputs = self.settings.schedule.layers, {}

        def tap(layer: int, hidden: Tensor, _named: dict[str, Any]) -> None:
            inputs[layer] = hidden.clone()  # a layer may add to its input in place
            if layer == layers[-1]:
                raise Enough

        try:
            with torch.no_grad(), tapped(self.model, layers, tap):
                rows.logits(self.model)
        except Enough:
            pass
        choice = may_drop(rows, self.settings.protection)
        found: dict[str, Tensor] = {}
        for layer in layers:
            scores = self.scorer.score(layer, inputs[layer])
            found |= self._saliency_terms(rows, layer, scores, choice, step)
        return Terms(found)

    def _saliency_terms(
        self, rows: Rows, layer: int, scores: Tensor, choice: Tensor, step: int
    ) -> dict[str, Tensor]:
        s, found = self.settings, {}
        if not s.needs_targets:
            return {}
        wanted = self._wanted(rows, layer, choice)
        if s.mse_weight:
            found[f"mse/{layer}"] = mse_loss(scores, wanted, choice)
        if s.rank_weight:
            pairs = draw_pairs(choice, s.pairs, self._generators(rows, step, f"pairs/{layer}"))
            found[f"rank/{layer}"] = ranking_loss(scores, wanted, choice, pairs)
        return found

    def _wanted(self, rows: Rows, layer: int, choice: Tensor) -> Tensor:
        """Targets `[rows, tokens]`, normalised over all prompt tokens that may be dropped, whatever is left of them."""
        assert self.targets is not None
        at, values = self.targets.layers.index(layer), torch.zeros(choice.shape)
        for row, sample in enumerate(rows.samples):
            values[row, rows.prompt[row].cpu()] = self.target_of(sample)[at]
        wanted = keep_value(values, output=self.targets.request["output"], sign=self.settings.sign)
        all_of_them = may_drop(rows, self.settings.protection).cpu()
        return normalised(wanted, all_of_them, self.settings.scale).to(choice.device)

    def _generators(self, rows: Rows, step: int, use: str) -> list[torch.Generator]:
        return [seeded(self.settings.seed, step, use, sample.name) for sample in rows.samples]


def seeded(*parts: object) -> torch.Generator:
    """A generator whose numbers depend on the parts alone: the same in any process, batch or resumed run."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
