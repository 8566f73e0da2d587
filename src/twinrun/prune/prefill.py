"""The record of one prefill: what each stage was given, what it kept, how its scores lay. Read off the timed path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import NonFiniteError


@dataclass(slots=True, kw_only=True)
class StageLog:
    """One stage of one prefill. Tensors stay on their device until something asks for numbers.

    Attributes:
        layer: index of the layer at whose input tokens were dropped.
        tokens_in: real tokens of each row before.
        kept: real tokens of each row after.
        scores: `[rows, tokens]` as the selector gave them; None where the choice was replayed.
        positions: `[rows, tokens]` int64 of these tokens in their own prompts; -1 is padding.
        at: `[rows, slots]` int64, the columns of the prompt that are left, padding counted, ascending.
    """

    layer: int
    tokens_in: tuple[int, ...]
    kept: tuple[int, ...]
    scores: Tensor | None
    positions: Tensor
    at: Tensor

    def statistics(self) -> dict[str, float | int]:
        """Least, mean, greatest and spread of the scores of real tokens, and how many different scores there are.

        Raises:
            NonFiniteError: a score is NaN or infinite.
        """
        if self.scores is None:
            return {}
        found = self.scores.detach().float()[self.positions >= 0].cpu()
        bad = int((~torch.isfinite(found)).sum())
        if bad:
            raise NonFiniteError(
                f"{bad} of {found.numel()} scores at layer {self.layer} are NaN or infinite; they were ranked last or "
                "first by rule, so mend the selector"
            )
        return {
            "min": float(found.min()),
            "mean": float(found.mean()),
            "max": float(found.max()),
            "std": float(found.std(unbiased=False)),
            "distinct": int(torch.unique(found).numel()),
        }


@dataclass(slots=True, kw_only=True)
class Prefill:
    """What the newest prefill did.

    Attributes:
        lengths: real tokens of each row's prompt.
        width: columns of the batch, padding counted.
        selector: name of what scored.
        num_layers: layers of the model.
        promised: tokens of each row that each layer is to see, by the schedule.
        stages: one record a stage; empty where the prompt was too short to prune, and then nothing was touched.
        replayed: whether the choice was taken over from an earlier prefill of the same rows, not made anew.
    """

    lengths: tuple[int, ...]
    width: int
    selector: str
    promised: tuple[tuple[int, ...], ...]
    stages: list[StageLog] = field(default_factory=list)
    replayed: bool = False

    @property
    def dropped(self) -> tuple[int, ...]:
        """Slots that each layer of the cache is to have less than the prompt has columns."""
        longest = max(self.lengths)
        return tuple(longest - max(row) for row in zip(*self.promised, strict=True))

    @property
    def is_untouched(self) -> bool:
        """Whether no token was dropped."""
        return not self.stages

    def layer_lengths(self, row: int = 0) -> tuple[int, ...]:
        """Real tokens of one row that each layer saw."""
        kept = {stage.layer: stage.kept[row] for stage in self.stages}
        found, now = [], self.lengths[row]
        for layer in range(len(self.promised[row])):
            now = kept.get(layer, now)
            found.append(now)
        return tuple(found)

    def kept_positions(self, row: int = 0) -> dict[int, list[int]]:
        """Positions that one row kept, by layer of the stage: host lists, made when asked for."""
        pads = self.width - self.lengths[row]
        return {s.layer: [c - pads for c in s.at[row].tolist() if c >= pads] for s in self.stages}

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types, with the statistics of the scores.

        Raises:
            NonFiniteError: a score is NaN or infinite.
        """
        return {
            "selector": self.selector,
            "prompt_tokens": list(self.lengths),
            "dropped_slots": list(self.dropped),
            "replayed": self.replayed,
            "stages": [
                {
                    "layer": stage.layer,
                    "tokens_in": list(stage.tokens_in),
                    "kept": list(stage.kept),
                    "scores": stage.statistics(),
                }
                for stage in self.stages
            ],
        }
