"""What a sweep is asked for. The command line takes its defaults and its help from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from twinrun.errors import ConfigError, near_names
from twinrun.verify.budget import Budget

PROMPTS = ("auto", "text", "ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """Settings of one sweep. Invalid settings cannot be built."""

    lengths: tuple[int, ...] = field(default=(64, 256), metadata={"help": "prompt lengths in tokens"})
    new_tokens: int = field(default=128, metadata={"help": "tokens every run is forced to write"})
    repeats: int = field(default=10, metadata={"help": "timed rounds; 10 or more for numbers to publish"})
    warmups: int = field(default=1, metadata={"help": "untimed whole runs of every runner before them"})
    judged_positions: int = field(
        default=16, metadata={"help": "new tokens that the verdict at each length covers, at most"}
    )
    prompts: Literal["auto", "text", "ids"] = field(
        default="auto",
        metadata={"help": "text: Python's language reference; ids: random; auto: text with a tokenizer"},
    )
    seed: int = field(default=0, metadata={"help": "of random ids"})
    budget: Budget | None = field(default=None, metadata={"help": "what a lossy runner may cost"})

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.lengths:
            raise ConfigError("no lengths; give at least one prompt length in tokens")
        for length in self.lengths:
            if length < 1:
                raise ConfigError(f"lengths start at 1 token, got {length}")
        if len(set(self.lengths)) != len(self.lengths):
            twice = next(n for n in self.lengths if self.lengths.count(n) > 1)
            raise ConfigError(f"length {twice} was given twice; give each length once")
        for name in ("new_tokens", "repeats", "warmups", "judged_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prompts not in PROMPTS:
            raise ConfigError(
                f"prompts must be one of {', '.join(PROMPTS)}, got {self.prompts!r}."
                f"{near_names(str(self.prompts), PROMPTS)}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> BenchSettings:
        """Build from keywords; an unknown one is an error with its near names."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"unknown setting {name!r}; bench takes {', '.join(known)}.{near_names(name, known)}"
                )
        budget = Budget.of(given.get("budget"))
        return cls(**{**given, "lengths": tuple(given["lengths"]), "budget": budget})
