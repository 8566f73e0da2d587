"""Settings of sampling, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from twinrun.contrast.select import check_thresholds
from twinrun.errors import ConfigError
from twinrun.runners.sampling import Sampling

SYSTEM_PROMPT = "Please reason step by step."
Chat = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """How answers are generated and steps chosen. The defaults are those of the paper (arXiv:2510.07962).

    Raises:
        ConfigError: a value outside its range.

    Example:
        >>> SampleSettings(alpha=0)
        Traceback (most recent call last):
        ...
        twinrun.errors.ConfigError: alpha must be in (0, 1], got 0; the paper has 0.2
    """

    beta: float = field(
        default=0.4, metadata={"help": "keep steps with KL(expert || amateur) above this, nats"}
    )
    alpha: float = field(
        default=0.2, metadata={"help": "ids count that have this share of the expert's likeliest, in (0, 1]"}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "tokens of an answer at most"})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy"})
    top_k: int = field(default=0, metadata={"help": "draw from the k likeliest tokens; 0 keeps all"})
    top_p: float = field(default=1.0, metadata={"help": "draw from the smallest set with this mass"})
    seed: int = field(default=0, metadata={"help": "problem i of the data draws from seed + i"})
    batch_size: int = field(default=32, metadata={"help": "problems a batch; a batch is what is committed"})
    first_step: int = field(
        default=0, metadata={"help": "first answer token that may be kept; the public project skips token 0"}
    )
    chat: Chat = field(
        default="auto", metadata={"help": "use the chat template: auto (if there is one), on, off"}
    )
    system_prompt: str = field(
        default=SYSTEM_PROMPT, metadata={"help": "system message of the chat; '' for none"}
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        check_thresholds(self.beta, self.alpha)
        Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("first_step", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.chat not in ("auto", "on", "off"):
            raise ConfigError(f"chat must be 'auto', 'on' or 'off', got {self.chat!r}")

    @property
    def sampling(self) -> dict[str, Any]:
        """What `generate` takes."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
