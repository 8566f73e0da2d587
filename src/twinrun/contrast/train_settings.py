"""How an expert is tuned: LightReasoner's published settings, each of them an option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from twinrun.errors import ConfigError, near_names

Method = Literal["contrast", "sft", "uniform"]
METHODS: tuple[Method, ...] = ("contrast", "sft", "uniform")
PRECISIONS = ("bfloat16", "float16", "float32")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """The adapter.

    Source: LightReasoner (arXiv:2510.07962): r 8, alpha 16, dropout 0.05, query and value projections.

    Attributes:
        r: rank of each update.
        alpha: an update counts `alpha / r` times.
        dropout: of what enters an update, while training.
        targets: names of the adapted modules; `("all-linear",)` adapts every linear layer but the head.
    """

    r: int = 8
    alpha: float = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.r < 1 or self.alpha <= 0:
            raise ConfigError(f"r must be at least 1 and alpha above 0, got r={self.r}, alpha={self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not self.targets:
            raise ConfigError("no modules to adapt; name them, for example q_proj v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long, how fast, on what.

    Source: LightReasoner (arXiv:2510.07962): learning rate 5e-5, batches of 8 with 2 accumulated, 1,000 steps, bf16.

    Differs from the paper: a batch counts whole answers, not single steps, because an answer is one forward.

    Attributes:
        method: "contrast" tunes the kept steps on their contrast labels; "uniform" as many steps drawn at random,
            on their contrast labels; "sft" as many tokens of right answers, on the tokens themselves.
        beta: keep only steps with KL above this, in nats; None keeps all that were sampled.
        only_right: leave out answers that are wrong (needs references; the paper keeps all).
        lora: the adapter.
        learning_rate: at the peak.
        schedule: transformers' name of its course.
        warmup: optimizer steps up to the peak.
        weight_decay: of AdamW.
        max_grad_norm: gradients are cut to this norm.
        batch_size: answers a forward.
        accumulation: forwards an optimizer step.
        steps: optimizer steps.
        precision: of the arithmetic ("bfloat16" and "float16" by autocast).
        validation: share of the problems kept apart.
        every: optimizer steps between two validations, and between two checkpoints.
        patience: validations without a better loss after which training stops; 0 never stops. The best is kept.
        seed: of the adapter's start, dropout, order, split, and draw of the baselines.
        check: prove before the first step that a batch gives what each answer gives alone.
        extra: further fields of `transformers.TrainingArguments` (fsdp, report_to, ...).

    Raises:
        ConfigError: a value out of its range, an unknown method, or an extra that has a field of its own here.

    Example:
        >>> TrainSettings().lora.targets
        ('q_proj', 'v_proj')
    """

    method: Method = "contrast"
    beta: float | None = None
    only_right: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    learning_rate: float = 5e-5
    schedule: str = "linear"
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int = 8
    accumulation: int = 2
    steps: int = 1000
    precision: str = "bfloat16"
    validation: float = 0.05
    every: int = 100
    patience: int = 0
    seed: int = 0
    check: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.method not in METHODS:
            raise ConfigError(
                f"no method named {self.method!r}; use one of {', '.join(METHODS)}.{near_names(self.method, METHODS)}"
            )
        for name in ("batch_size", "accumulation", "steps", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not self.max_grad_norm > 0:
            raise ConfigError(
                f"learning_rate and max_grad_norm must be above 0, got {self.learning_rate} and {self.max_grad_norm}"
            )
        if self.warmup < 0 or self.patience < 0 or self.weight_decay < 0:
            raise ConfigError("warmup, patience and weight_decay must be 0 or larger")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation is a share of the problems, 0 to below 1, got {self.validation}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.patience and not self.validation:
            raise ConfigError("patience needs validation problems; set validation above 0")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        found = asdict(self)
        found["lora"]["targets"] = list(self.lora.targets)
        found["extra"] = dict(self.extra)
        return found
