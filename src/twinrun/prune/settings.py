"""Settings of a scorer's training. Invalid ones cannot be built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from twinrun.errors import ConfigError
from twinrun.prune.losses import SCALES, SIGNS, Scale, Sign
from twinrun.prune.protection import Protection
from twinrun.prune.schedule import Schedule

TERMS = ("lm", "mse", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How scorers are trained. The paper (arXiv:2504.04514) fixes the epochs and the weights; the rest is ours."""

    schedule: Schedule
    protection: Protection = field(default_factory=Protection)
    offline: bool = False
    epochs: int = field(default=2, metadata={"help": "passes over the samples"})
    batch_size: int = field(default=8, metadata={"help": "samples a step, over all processes"})
    rows: int = field(default=4, metadata={"help": "samples a forward, in one process"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of AdamW, after the warm-up; falls to 0"})
    warmup: float = field(default=0.1, metadata={"help": "share of the steps with a rising learning rate"})
    weight_decay: float = field(default=0.01, metadata={"help": "of AdamW"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})
    lm_weight: float = field(default=1.0, metadata={"help": "of the language-model loss; 0 leaves it out"})
    mse_weight: float = field(default=1.0, metadata={"help": "of the mean square error; 0 leaves it out"})
    rank_weight: float = field(default=1.0, metadata={"help": "of the ranking loss; 0 leaves it out"})
    pairs: int = field(
        default=16_384, metadata={"help": "most pairs a sample and layer; all where there are fewer"}
    )
    sign: Sign = field(default="abs", metadata={"help": "of the saliency: abs or signed"})
    scale: Scale = field(default="rank", metadata={"help": "of the targets: rank, log, standard or none"})
    noise: float = field(default=0.3, metadata={"help": "size of the Gumbel noise on the choice"})
    temperature: float = field(default=0.3, metadata={"help": "of the straight-through sigmoid"})
    seed: int = field(default=0, metadata={"help": "of order, noise and pairs"})
    save_every: int = field(default=50, metadata={"help": "steps between checkpoints"})
    watch: int = field(default=10, metadata={"help": "first steps in which every loss term must move"})

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("epochs", "batch_size", "rows", "pairs", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "lm_weight", "mse_weight", "rank_weight", "noise", "watch"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be 0 or larger, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup is a share of the steps, 0 to 1, got {self.warmup}")
        for name, known in (("sign", SIGNS), ("scale", SCALES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}; use one of {', '.join(known)}")
        if not any(self.weights.values()):
            raise ConfigError("every loss term has weight 0; leave at least one on")

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term; offline there is no language-model loss."""
        lm = 0.0 if self.offline else self.lm_weight
        return {"lm": lm, "mse": self.mse_weight, "rank": self.rank_weight}

    @property
    def needs_targets(self) -> bool:
        """Whether saliency is read at all."""
        return bool(self.mse_weight or self.rank_weight)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("schedule", "protection")}
        stages = {str(stage.layer): stage.keep for stage in self.schedule.stages}
        return {**plain, "schedule": stages, "protection": asdict(self.protection)}
