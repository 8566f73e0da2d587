"""Everything a sweep needs before its first row: runners by name, the text, the settings, the ceilings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from twinrun.bench.ceilings import Ceilings, measure_ceilings
from twinrun.bench.prompts import token_row
from twinrun.bench.settings import BenchSettings
from twinrun.bench.timing import AGAIN
from twinrun.bench.weights import digest, read_bytes
from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name
from twinrun.records.env import environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A sweep that can start. The first side is the reference."""

    sides: dict[str, Any]
    settings: BenchSettings
    ids: list[int]
    source: str
    model: Model
    """Of the reference."""

    @classmethod
    def of(cls, runners: Mapping[str, Any] | Iterable[Any], settings: BenchSettings) -> Plan:
        """Check the runners and prepare the text.

        Raises:
            ConfigError: no runner, one given twice, one without `score` and `generate`, or a first one that
                cannot be the reference.
        """
        sides = named(runners)
        model = _model_of_reference(sides)
        count = max(settings.lengths) + settings.new_tokens
        ids, source = token_row(model, count, settings)
        return cls(sides=sides, settings=settings, ids=ids, source=source, model=model)

    @property
    def reference(self) -> str:
        """Name of the first side."""
        return next(iter(self.sides))

    @property
    def device(self) -> torch.device:
        """Where the reference runs."""
        return self.model.device

    def ceilings(self) -> Ceilings:
        """Measure both ceilings for the precisions of all sides."""
        kinds = {side.model.dtype for side in self.sides.values() if _loaded(side)}
        return measure_ceilings(kinds, self.device, read_bytes(self.model))

    def request(self) -> dict[str, Any]:
        """What was asked for and where: two sweeps with equal requests may share their rows."""
        settings, budget = self.settings, self.settings.budget
        return {
            "model": self.model.name,
            "dtype": dtype_name(self.model.dtype),
            "device": str(self.device),
            "runners": [
                {
                    "name": name,
                    "model": side.model.name if _loaded(side) else None,
                    "dtype": str(getattr(side, "dtype", "")) or None,
                    "weights": digest(side.model) if _loaded(side) else None,
                }
                for name, side in self.sides.items()
            ],
            "lengths": list(settings.lengths),
            "new_tokens": settings.new_tokens,
            "repeats": settings.repeats,
            "warmups": settings.warmups,
            "judged_positions": settings.judged_positions,
            "prompts": self.source,
            "budget": None
            if budget is None
            else {"kl": budget.kl, "kl_max": budget.kl_max, "top1": budget.top1},
            "threads": torch.get_num_threads(),
            "env": environment(),
        }


def named(runners: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    """Give every runner a name: its own, with its model's behind it where two share one; a mapping brings names."""
    if isinstance(runners, Mapping):
        sides = {str(name): side for name, side in runners.items()}
    else:
        items = list(runners)
        short = [str(getattr(side, "name", type(side).__name__)) for side in items]
        full = [
            f"{name} on {getattr(side, 'model_name', 'its model')}" if short.count(name) > 1 else name
            for name, side in zip(short, items, strict=True)
        ]
        for name in full:
            if full.count(name) > 1:
                raise ConfigError(
                    f"runner {name!r} was given twice; the A/A run repeats the first by itself "
                    "(two settings of one runner: pass {name: runner})"
                )
        sides = dict(zip(full, items, strict=True))
    _check(sides)
    return sides


def _check(sides: Mapping[str, Any]) -> None:
    if not sides:
        raise ConfigError("no runners; give at least one, the first is the reference")
    for name, side in sides.items():
        for verb in ("score", "generate"):
            if not callable(getattr(side, verb, None)):
                raise ConfigError(
                    f"{name} has no {verb}(); a runner needs score(tokens, start) and "
                    "generate(prompt, max_new_tokens, observe)"
                )
        if getattr(side, "kind", "") == "diffusion":
            raise ConfigError(
                f"{name} fills in a canvas and has no time per token; `twinrun diffuse` times it with a verdict"
            )
        if name.endswith(AGAIN):
            raise ConfigError(f"{name!r} is how the A/A run is called; name that runner otherwise")


def _model_of_reference(sides: Mapping[str, Any]) -> Model:
    name, first = next(iter(sides.items()))
    if not _loaded(first):
        raise ConfigError(
            f"{name} comes first and has no twinrun model, so it cannot be the reference; put a plain "
            "runner first, tr.Recompute(model) for example"
        )
    why = first.can_raise() if hasattr(first, "can_raise") else f"{name} has no raised()"
    if why is not None and len(sides) > 1:
        raise ConfigError(
            f"{name} cannot be the reference: {why}; put a plain runner on ordinary weights first"
        )
    model: Model = first.model
    return model


def _loaded(side: Any) -> bool:
    return isinstance(getattr(side, "model", None), Model)
