"""What `twinrun contrast check` found: numbers of every step, verdicts of both models, the proposal's comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from twinrun.errors import ConfigError
from twinrun.verify.summary import finite_or_none
from twinrun.verify.verdict import Verdict

SCHEMA = "twinrun.contrast-check/1"
LOGITS, PROBABILITIES, KL_MEAN, TOP = (5e-2, 1e-2), (5e-3, 1e-2), 1e-4, 5
"""The proposal's own tolerances (absolute, relative; made for float16) and its number of likeliest ids. They are shown,
and decide nothing: in bfloat16 they refuse sound models, in float32 they let small faults pass."""
SIDES = ("expert", "amateur")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckText:
    """A text as both models get it.

    Attributes:
        label: how it is called.
        ids: prompt and answer.
        start: tokens of the prompt; what follows is checked.
        tokens: the text of each id; None without a tokenizer.

    Raises:
        ConfigError: nothing to check behind the prompt.
    """

    label: str
    ids: tuple[int, ...]
    start: int
    tokens: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a text without steps."""
        if not 1 <= self.start < len(self.ids):
            raise ConfigError(
                f"{self.label} has {len(self.ids)} tokens with a prompt of {self.start}; give at least one token of "
                "prompt and one behind it"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SideStep:
    """One model at one step, sequential against single pass: largest differences, likeliest ids, KL between both."""

    logit_gap: float | None
    probability_gap: float | None
    logits_close: bool
    probabilities_close: bool
    same_top: bool
    kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One answer token. `kl_*` are KL(expert || amateur), once from each way; `kept_*` whether it exceeds beta."""

    step: int
    position: int
    token_id: int
    token: str | None
    expert: SideStep
    amateur: SideStep
    kl_sequential: float | None
    kl_single: float | None
    kept_sequential: bool
    kept_single: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `check` found.

    Attributes:
        verdicts: one a model, in the order of `SIDES`: sequential is the reference, single pass the candidate.
        texts: label and steps of each text.
        seconds: of each model and way, over all texts; one run each, for orientation.
    """

    expert: str
    amateur: str
    dtype: dict[str, str]
    beta: float
    verdicts: tuple[Verdict, Verdict]
    texts: tuple[tuple[str, tuple[Step, ...]], ...]
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether both models are the same both ways."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def steps(self) -> list[Step]:
        """All steps of all texts."""
        return [step for _, steps in self.texts for step in steps]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is no finite number is null."""
        record: dict[str, Any] = finite_or_none(
            {
                "schema": SCHEMA,
                "passed": self.passed,
                "expert": self.expert,
                "amateur": self.amateur,
                "dtype": self.dtype,
                "beta": self.beta,
                "sides": {who: self._side(i, who) for i, who in enumerate(SIDES)},
                "steps": len(self.steps),
                "kept": {
                    "sequential": sum(s.kept_sequential for s in self.steps),
                    "single": sum(s.kept_single for s in self.steps),
                    "same": sum(s.kept_single == s.kept_sequential for s in self.steps),
                },
                "texts": [
                    {"label": label, "steps": [asdict(s) for s in steps]} for label, steps in self.texts
                ],
            }
        )
        return record

    def _side(self, index: int, who: str) -> dict[str, Any]:
        """Verdict of one model, and the proposal's four comparisons."""
        steps: list[SideStep] = [getattr(step, who) for step in self.steps]
        kl = [step.kl for step in steps]
        mean = None if None in kl else sum(k for k in kl if k is not None) / len(kl)
        return {
            "verdict": self.verdicts[index].to_json(),
            "logit_gap_max": _largest([s.logit_gap for s in steps]),
            "probability_gap_max": _largest([s.probability_gap for s in steps]),
            "same_top": sum(s.same_top for s in steps),
            "kl_mean": mean,
            "proposal": {
                "logits": all(s.logits_close for s in steps),
                "probabilities": all(s.probabilities_close for s in steps),
                "top": all(s.same_top for s in steps),
                "kl": mean is not None and mean < KL_MEAN,
            },
            "seconds": self.seconds[who],
        }


def _largest(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and v == v]
    return None if len(known) < len(values) else max(known)
