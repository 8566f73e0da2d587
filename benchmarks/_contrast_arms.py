"""The ways in which `contrast_train.py` trains builtin:expert: the paper's, its baselines, and what else was tried."""

from __future__ import annotations

from dataclasses import dataclass

from twinrun.contrast.train_settings import ALL_LINEAR, LoraSettings, TrainSettings
from twinrun.errors import ConfigError, near_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way. `method` None trains nothing; `steps` 0 takes the number that the script was given."""

    name: str
    method: str | None = "contrast"
    beta: float = 0.4
    alpha: float = 0.2
    temperature: float = 0.0
    learning_rate: float = 5e-5
    r: int = 8
    all_linear: bool = False
    only_right: bool = False
    amateur: str = "builtin:amateur"
    steps: int = 0

    def settings(self, steps: int) -> TrainSettings:
        """Settings of training, float32 and one forward an optimizer step (the paper's 8 x 2 answers as 16 x 1)."""
        targets = (ALL_LINEAR,) if self.all_linear else ("q_proj", "v_proj")
        return TrainSettings(
            method=self.method or "contrast",
            beta=self.beta,
            only_right=self.only_right,
            lora=LoraSettings(r=self.r, alpha=2 * self.r, targets=targets),
            learning_rate=self.learning_rate,
            batch_size=16,
            accumulation=1,
            steps=self.steps or steps,
            precision="float32",
            validation=0.05,
            every=min(100, self.steps or steps),
        )


OLDER = "older"
"""Stands for the checkpoint that `contrast_train.py --older` names: the expert itself, earlier in its own training."""
MIDDLE = {"learning_rate": 2e-4, "all_linear": True}
STRONG = {"learning_rate": 1e-3, "r": 16, "all_linear": True}
ARMS = (
    Arm(name="base", method=None),
    Arm(name="contrast"),
    Arm(name="sft", method="sft"),
    Arm(name="uniform", method="uniform"),
    Arm(name="contrast-strong", **STRONG),
    Arm(name="sft-strong", method="sft", **STRONG),
    Arm(name="contrast-low-beta", beta=0.01, **MIDDLE),
    Arm(name="contrast-low-alpha", beta=0.05, alpha=0.02, **MIDDLE),
    Arm(name="contrast-sampled", temperature=1.0, **MIDDLE),
    Arm(name="contrast-middle", **MIDDLE),
    Arm(name="sft-middle", method="sft", **MIDDLE),
    Arm(name="contrast-right", only_right=True, **MIDDLE),
    Arm(name="contrast-older", amateur=OLDER, **MIDDLE),
    Arm(name="contrast-1000", steps=1000),
)


def arm_named(name: str) -> Arm:
    """The arm of that name.

    Raises:
        ConfigError: there is none.
    """
    names = [arm.name for arm in ARMS]
    if name not in names:
        raise ConfigError(f"no arm named {name!r}; use one of {', '.join(names)}.{near_names(name, names)}")
    return next(arm for arm in ARMS if arm.name == name)
