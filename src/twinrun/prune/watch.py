"""The training check: every loss term must be finite, not zero, not constant, and must move the scorer.

Public code of SDTP trained for 90 steps with its saliency losses overwritten with zero and did not notice
(casebook, case 3). So a term that teaches nothing ends the training, in one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from twinrun.errors import NonFiniteError, TrainingError


class Watch:
    """Looks at the first steps; what it refuses, it refuses before the training goes on.

    Args:
        steps: how many steps it looks at; 0 looks at none.

    Example:
        >>> watch = Watch(2)
        >>> watch.see(0, {"mse": 0.5}, {"mse": 0.1})
        >>> watch.see(1, {"mse": 0.4}, {"mse": 0.1})
    """

    def __init__(self, steps: int) -> None:
        """Begin with nothing seen."""
        self.steps = steps
        self._values: dict[str, list[float]] = {}
        self._moved: dict[str, list[float]] = {}

    @property
    def is_open(self) -> bool:
        """Whether more steps are wanted; then the gradient of each term is asked for too."""
        return len(next(iter(self._values.values()), [])) < self.steps

    def see(self, step: int, values: Mapping[str, float], gradients: Mapping[str, float]) -> None:
        """Take the terms of a step and the norm of the gradient that each sends into the scorer.

        Raises:
            NonFiniteError: NaN or infinity.
            TrainingError: at the last step looked at, a term that was zero or constant all along, or moved nothing.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"loss term {name} is {value} at step {step}; lower the learning rate or load the model in float32"
                )
        if not self.is_open:
            return
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)
            self._moved.setdefault(name, []).append(gradients.get(name, 0.0))
        if not self.is_open:
            self.judge()

    def judge(self) -> None:
        """Judge what was seen.

        Raises:
            TrainingError: names the first inert term.
        """
        for name, values in self._values.items():
            count = len(values)
            if all(v == 0 for v in values):
                raise TrainingError(
                    f"loss term {name} is zero in the first {count} steps: it is not computed, or overwritten; "
                    "mend it, or leave it out with weight 0"
                )
            if count > 1 and all(v == values[0] for v in values):
                raise TrainingError(
                    f"loss term {name} is {values[0]:.6g} in each of the first {count} steps: it hangs on nothing; "
                    "mend it, or leave it out with weight 0"
                )
            if all(g == 0 for g in self._moved[name]):
                raise TrainingError(
                    f"loss term {name} sends no gradient into the scorer in the first {count} steps: it is detached; "
                    "mend it, or leave it out with weight 0"
                )
