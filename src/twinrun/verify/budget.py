"""What a lossy technique may cost: the bounds between `lossy` (by design) and `different`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from twinrun.errors import ConfigError, near_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds a candidate must stay inside to be called lossy. At least one; all that are given must hold."""

    kl: float | None = None
    """Mean KL(reference || candidate) a position, nats, at most."""
    kl_max: float | None = None
    """Largest KL of any position, nats, at most."""
    top1: float | None = None
    """Share of positions with the same likeliest token, in [0, 1], at least."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if all(getattr(self, f.name) is None for f in fields(self)):
            raise ConfigError("a budget needs at least one of kl, kl_max, top1")
        for name in ("kl", "kl_max"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"budget {name} must be at least 0 nats, got {value}")
        if self.top1 is not None and not 0 <= self.top1 <= 1:
            raise ConfigError(f"budget top1 must be a share in [0, 1], got {self.top1}")

    @classmethod
    def of(cls, value: Budget | Mapping[str, float] | None) -> Budget | None:
        """Accept a budget, a mapping of its fields, or None; an unknown field is an error."""
        if value is None or isinstance(value, Budget):
            return value
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                raise ConfigError(
                    f"unknown budget {name!r}; use {', '.join(known)}.{near_names(name, known)}"
                )
        return cls(**value)

    def exceeded(self, *, kl_mean: float, kl_max: float, top1_agreement: float) -> str | None:
        """Return the first bound that does not hold, in words, or None when all hold."""
        if self.kl is not None and not kl_mean <= self.kl:
            return f"mean KL {kl_mean:.3g} exceeds the budget of {self.kl:g}"
        if self.kl_max is not None and not kl_max <= self.kl_max:
            return f"largest KL {kl_max:.3g} exceeds the budget of {self.kl_max:g}"
        if self.top1 is not None and not top1_agreement >= self.top1:
            return f"top-1 agreement {top1_agreement:.4f} is below the budget of {self.top1:g}"
        return None
