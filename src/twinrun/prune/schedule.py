"""How much of a prompt each layer sees: a keep ratio or a number of tokens for every layer that prunes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from twinrun.errors import ConfigError
from twinrun.prune.protection import Protection, ceil_share

PRESETS = (0.7, 0.8, 0.9)
"""Ratios of the published settings; 0.9 is the paper's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One layer that prunes at its input.

    Attributes:
        layer: index from 0. The tokens kept are those that this layer and all behind it see.
        keep: a float in (0, 1] is a share of the *original* prompt, an int a number of tokens. Protected tokens are
            counted in.
    """

    layer: int
    keep: float | int

    def __post_init__(self) -> None:
        """Check types and ranges."""
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 0:
            raise ConfigError(f"a stage is at layer {self.layer!r}; give the index of a layer, 1 or more")
        if self.layer == 0:
            raise ConfigError(
                "a stage at layer 0: transformers reads the length of the text, and so the next position, off that "
                "layer's cache, so it keeps every token; begin at layer 1 or deeper (the paper begins at 4)"
            )
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
            raise ConfigError(
                f"layer {self.layer} keeps {self.keep!r}; give a float in (0, 1] or a number of tokens"
            )
        if isinstance(self.keep, int) and self.keep < 1:
            raise ConfigError(f"layer {self.layer} keeps {self.keep} tokens; keep at least 1")
        if isinstance(self.keep, float) and not 0.0 < self.keep <= 1.0:
            raise ConfigError(f"layer {self.layer} has keep ratio {self.keep}; it must be in (0, 1]")

    def wanted(self, length: int) -> int:
        """Tokens that a prompt of `length` is cut to, protection aside; a share is rounded up, so it is at least 1.

        Raises:
            ConfigError: a number of tokens beyond the prompt.
        """
        if isinstance(self.keep, float):
            return ceil_share(self.keep, length)
        if self.keep > length:
            raise ConfigError(
                f"layer {self.layer} keeps {self.keep} tokens and the prompt has {length}; give a smaller budget, "
                "or a share such as 0.9"
            )
        return self.keep


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stages in the order of their layers, each keeping no more than the one before.

    Source: SDTP, arXiv 2504.04514, section 4.1: ten stages, ratios r, r^2, ..., r^10 of the original length. Its
    layers are named only in section 4.6 (first the 4th, then every third); counted from 0 here.

    Example:
        >>> Schedule.of({4: 0.9, 7: 0.81}).kept(100)
        (90, 81)
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Check that there is a stage, that layers rise and that nothing grows back."""
        if not self.stages:
            raise ConfigError("the schedule has no stages; give at least one, such as {4: 0.9}")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if after.layer <= before.layer:
                raise ConfigError(
                    f"the schedule goes from layer {before.layer} to layer {after.layer}; give layers in rising "
                    "order, each once"
                )
            if type(before.keep) is type(after.keep) and after.keep > before.keep:
                raise ConfigError(
                    f"layer {after.layer} keeps {after.keep}, more than layer {before.layer} ({before.keep}); "
                    "dropped tokens do not come back: let the schedule fall"
                )

    @classmethod
    def of(cls, given: Schedule | Mapping[int, float | int]) -> Schedule:
        """Return a schedule from `{layer: keep}`, or the schedule itself.

        Raises:
            ConfigError: anything else, or stages that cannot be.
        """
        if isinstance(given, Schedule):
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"a schedule is {{layer: keep}} or a Schedule, got {given!r:.60}; for example {{4: 0.9, 7: 0.81}}"
            )
        return cls(stages=tuple(Stage(layer=layer, keep=keep) for layer, keep in given.items()))

    @classmethod
    def geometric(cls, num_layers: int, ratio: float = 0.9, first: int = 4, every: int = 3) -> Schedule:
        """Return the paper's schedule: ratio, ratio^2, ... at layers first, first + every, ... of `num_layers`.

        Raises:
            ConfigError: a ratio outside (0, 1], a step below 1, or no such layer.

        Example:
            >>> [s.layer for s in Schedule.geometric(32).stages][-1], round(Schedule.geometric(32).stages[-1].keep, 3)
            (31, 0.349)
        """
        if not 0.0 < ratio <= 1.0:
            raise ConfigError(f"ratio must be in (0, 1], got {ratio}; the paper's is 0.9")
        if every < 1:
            raise ConfigError(f"every must be at least 1 layer, got {every}")
        layers = range(first, num_layers, every)
        if not layers:
            raise ConfigError(
                f"first={first} is beyond the last layer of {num_layers} (index {num_layers - 1}); give first=1, "
                "or a schedule such as {1: 0.9}"
            )
        return cls(
            stages=tuple(Stage(layer=layer, keep=float(ratio ** (i + 1))) for i, layer in enumerate(layers))
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers that prune."""
        return tuple(stage.layer for stage in self.stages)

    def words(self, num_layers: int) -> str:
        """The settings from which the name of a runner builds this schedule again (`twinrun.prune.named`).

        Example:
            >>> Schedule.geometric(32).words(32), Schedule.of({4: 0.9, 9: 256}).words(32)
            ('ratio=0.9+first=4+every=3', 'schedule=4:0.9,9:256')
        """
        first, step = self.stages[0], 3
        if len(self.stages) > 1:
            step = self.stages[1].layer - first.layer
        is_share = isinstance(first.keep, float)
        if is_share and self == Schedule.geometric(num_layers, first.keep, first.layer, step):
            return f"ratio={first.keep!r}+first={first.layer}+every={step}"
        return "schedule=" + ",".join(f"{s.layer}:{s.keep!r}" for s in self.stages)

    def check(self, num_layers: int) -> None:
        """Refuse stages beyond the last layer of a model.

        Raises:
            ConfigError: there are.
        """
        if self.stages[-1].layer >= num_layers:
            raise ConfigError(
                f"the schedule prunes at layer {self.stages[-1].layer} and the model's last is {num_layers - 1}; "
                f"Schedule.geometric({num_layers}) fits it"
            )

    def kept(self, length: int, protection: Protection | None = None) -> tuple[int, ...]:
        """Tokens after each stage for a prompt of `length` real tokens.

        The protected ones are counted in and never fewer than these are kept; so a prompt that is nothing but
        protected tokens stays whole.

        Args:
            length: real tokens of the prompt, padding not counted, at least 1.
            protection: which tokens are never dropped; None is the paper's.

        Raises:
            ConfigError: a number of tokens beyond the prompt.

        Example:
            >>> Schedule.geometric(12).kept(1000), Schedule.geometric(12).kept(4)
            ((900, 810, 729), (4, 4, 4))
        """
        if length < 1:
            raise ConfigError(f"a prompt of {length} tokens; at least 1 is needed")
        least = (protection or Protection()).tokens(length)
        found: list[int] = []
        for stage in self.stages:
            now = min(length, max(stage.wanted(length), least))
            found.append(min(now, found[-1]) if found else now)
        return tuple(found)

    def lengths(self, num_layers: int, length: int, protection: Protection | None = None) -> tuple[int, ...]:
        """Tokens that each of `num_layers` layers sees, and its cache holds after the prefill."""
        self.check(num_layers)
        found, now = [], length
        kept = dict(zip(self.layers, self.kept(length, protection), strict=True))
        for layer in range(num_layers):
            now = kept.get(layer, now)
            found.append(now)
        return tuple(found)

    def mean_keep(self, num_layers: int, length: int, protection: Protection | None = None) -> float:
        """Mean over layers of tokens seen over tokens given: what the linear part of the prefill's FLOPs falls to."""
        lengths = self.lengths(num_layers, length, protection)
        return math.fsum(n / length for n in lengths) / num_layers

    def mean_keep_squared(self, num_layers: int, length: int, protection: Protection | None = None) -> float:
        """Mean over layers of the squared share: what the quadratic part, attention, falls to."""
        lengths = self.lengths(num_layers, length, protection)
        return math.fsum((n / length) ** 2 for n in lengths) / num_layers
