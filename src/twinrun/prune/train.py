"""Train scorers: the model frozen, every loss term logged and watched, killed and resumed without a trace.

Source: arXiv:2504.04514, sections 3.2 and 4.1: `L = L_cls + L_mse + L_r`, two epochs, only the scorers learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import ConfigError, NonFiniteError
from twinrun.models.identity import model_fingerprint
from twinrun.models.model import Model
from twinrun.prune.checkpoints import TrainFolder
from twinrun.prune.group import Group
from twinrun.prune.objective import Objective, seeded
from twinrun.prune.recheck import recheck
from twinrun.prune.saliency import refuse_without_gradients
from twinrun.prune.samples import Sample, Samples
from twinrun.prune.scorer import FACTS, Scorer
from twinrun.prune.settings import TrainSettings
from twinrun.prune.simulate import refuse_masks
from twinrun.prune.taps import frozen
from twinrun.prune.targets import Targets
from twinrun.prune.watch import Watch

RECHECKED = 2
"""Samples whose targets are computed again before the first step."""


class Training:
    """One training run. `train` is the short way; a subclass or a test may replace `objective`.

    Args:
        model: frozen.
        samples: the data set.
        scorer: trained in place.
        settings: how.
        targets: stored saliency of these samples; None where no term needs it.

    Raises:
        ConfigError: targets or layers that are missing, a float16 model.
        UnsupportedModelError: a model that lets no gradient through or takes no masks.
    """

    def __init__(
        self,
        model: Model,
        samples: Samples,
        scorer: Scorer,
        settings: TrainSettings,
        targets: Targets | None = None,
    ) -> None:
        """Check everything before any work."""
        settings.schedule.check(len(model.layout.layers))
        refuse_without_gradients(model)
        if not settings.offline:
            refuse_masks(model)
        if settings.needs_targets and targets is None:
            raise ConfigError(
                "the mse and ranking terms need targets; make them with `twinrun prune saliency`, or set both weights "
                "to 0"
            )
        scorer.check(model)
        self.model, self.samples, self.scorer, self.settings = model, samples, scorer, settings
        self.objective = Objective(model, scorer, targets, settings)
        self.group = Group(model.device)
        self.watch = Watch(settings.watch)
        self.optimizer = torch.optim.AdamW(
            scorer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=False
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass."""
        return -(-len(self.samples) // self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * self.steps_per_epoch

    def names(self) -> list[str]:
        """Loss terms that are on."""
        on = [name for name, weight in self.settings.weights.items() if weight]
        layers = self.settings.schedule.layers
        return [n for name in on for n in ([name] if name == "lm" else [f"{name}/{i}" for i in layers])]

    def batch(self, step: int) -> list[int]:
        """Indices of the samples of a step: each epoch is a permutation of its own."""
        epoch, at = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self.samples), generator=seeded(self.settings.seed, "order", epoch))
        size = self.settings.batch_size
        return [int(i) for i in order[at * size : (at + 1) * size]]

    def run(
        self, folder: str | Path, on_step: Callable[[int, int], object] = lambda done, total: None
    ) -> Scorer:
        """Train to the last step, from the newest checkpoint of `folder` if there is one.

        Returns:
            The scorer, also written to `folder`.

        Raises:
            TrainingError: an inert loss term in the first `watch` steps, or targets of other samples.
            NonFiniteError: a term or gradient that is NaN or infinite.
            ConfigError: the folder holds another training.
        """
        place = TrainFolder(folder, self._request(), writes=self.group.is_first)
        done = place.restore(self.scorer, self.optimizer)
        place.rewind_log(done)
        self.scorer.facts["training"] = {**self._request(), "steps": self.steps}
        if (place.folder / FACTS).exists() and done >= self.steps:
            return self.scorer.eval()
        with frozen(self.model):
            recheck(self.objective, [self.samples[i] for i in self.batch(done)[:RECHECKED]])
            for step in range(done, self.steps):
                place.log(self.step(step))
                on_step(step + 1, self.steps)
                if (step + 1) % self.settings.save_every == 0 or step + 1 == self.steps:
                    place.save(step + 1, self.scorer, self.optimizer)
        if self.watch.is_open:
            self.watch.judge()
        if self.group.is_first:
            self.scorer.save(folder)
        self.group.wait()
        return self.scorer.eval()

    def step(self, step: int) -> dict[str, Any]:
        """One step on all processes; returns its log row."""
        indices, names = self.batch(step), self.names()
        own = [self.samples[i] for i in indices[self.group.rank :: self.group.size]]
        values = dict.fromkeys(names, 0.0)
        moved, kept = dict(values), {f"kept/{layer}": 0.0 for layer in self.settings.schedule.layers}
        self.optimizer.zero_grad(set_to_none=True)
        for at in range(0, len(own), self.settings.rows):
            self._learn(own[at : at + self.settings.rows], len(indices), step, (values, moved, kept))
        numbers = self._gather((values, moved, kept))
        self.watch.see(step, {n: numbers[0][n] for n in names}, numbers[1])
        rate = self._rate(step)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.scorer.parameters(), self.settings.clip, foreach=False)
        )
        if norm != norm or norm == float("inf"):
            raise NonFiniteError(f"the gradient is {norm} at step {step}; lower the learning rate")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        weights = self.settings.weights
        loss = sum(weights[name.partition("/")[0]] * numbers[0][name] for name in names)
        shares = {} if self.settings.offline else numbers[2]
        row = {"step": step, "epoch": step // self.steps_per_epoch, "learning_rate": rate, "loss": loss}
        return {**row, **numbers[0], **shares, "gradient_norm": norm, "samples": indices}

    def _learn(
        self, own: Sequence[Sample], total: int, step: int, sums: tuple[dict[str, float], ...]
    ) -> None:
        """Forward and backward of some samples; adds to the sums of values, gradient norms and shares kept."""
        values, moved, kept = sums
        found = self.objective.terms(own, step)
        weights, loss = self.settings.weights, torch.zeros((), device=self.model.device)
        for name in values:
            term = found.values[name].sum() / total
            values[name] += float(term.detach())
            if self.watch.is_open and term.requires_grad:
                moved[name] += self._norm_of(term)
            loss = loss + weights[name.partition("/")[0]] * term
        for layer, share in found.kept.items():
            kept[f"kept/{layer}"] += share * len(own) / total
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]  # unannotated there

    def _norm_of(self, term: Tensor) -> float:
        parts = torch.autograd.grad(
            term, list(self.scorer.parameters()), retain_graph=True, allow_unused=True
        )
        return math.sqrt(sum(float(p.square().sum()) for p in parts if p is not None))

    def _gather(self, sums: tuple[dict[str, float], ...]) -> tuple[dict[str, float], ...]:
        """Sum gradients and numbers over all processes, in one message."""
        weights = list(self.scorer.parameters())
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if self.group.size == 1:
            return sums
        flat = [w.grad.reshape(-1) for w in weights if w.grad is not None]
        told = torch.tensor([v for each in sums for v in each.values()], device=flat[0].device)
        summed = self.group.sum(torch.cat([*flat, told]))
        at = 0
        for weight in weights:
            weight.grad = summed[at : at + weight.numel()].view_as(weight)
            at += weight.numel()
        left = iter(summed[at:].tolist())
        return tuple({name: next(left) for name in each} for each in sums)

    def _rate(self, step: int) -> float:
        """Linear up over the warm-up, linear down to 0 behind it."""
        rise = max(1, round(self.settings.warmup * self.steps))
        fall = max(1, self.steps - rise)
        share = (step + 1) / rise if step < rise else (self.steps - step) / fall
        return self.settings.learning_rate * min(1.0, share)

    def _request(self) -> dict[str, Any]:
        targets = self.objective.targets
        return {
            "model": self.model.name,
            "fingerprint": model_fingerprint(self.model),
            "data": self.samples.identity,
            "settings": self.settings.to_json(),
            "output": None if targets is None else targets.request["output"],
            "hidden": self.scorer.hidden,
            "start": self.scorer.facts.get("seed"),
        }


def train(
    model: Model,
    samples: Samples,
    folder: str | Path,
    settings: TrainSettings,
    *,
    targets: Targets | None = None,
    hidden: int | None = None,
) -> Scorer:
    """Train scorers for the layers of a schedule and write them to `folder`.

    Args:
        model: float32 or bfloat16; frozen, and bit-identical afterwards.
        samples: the data set that the targets were made of.
        folder: scorers, log and checkpoints; a run that was killed goes on and ends with the same bytes.
        settings: schedule, losses, steps.
        targets: stored saliency; not needed where `mse_weight` and `rank_weight` are 0.
        hidden: width inside the MLPs; None is `Scorer.new`'s choice.

    Returns:
        The trained scorer.

    Raises:
        TrainingError: a loss term that teaches nothing, or targets of other samples.
        ConfigError, UnsupportedModelError: see `Training`.

    Cost: end to end, a forward and a backward a sample and epoch, with a mask `[rows, 1, tokens, tokens]`; offline,
        a forward up to the last pruned layer.
    """
    scorer = Scorer.new(model, settings.schedule.layers, hidden, seed=settings.seed)
    return Training(model, samples, scorer, settings, targets).run(folder)
