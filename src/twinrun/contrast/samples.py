"""What sampling finds: one `StepSample` a step worth learning, one `Trajectory` an answer, with all token ids.

Numbers are float32; their JSON form has the fewest digits that give the same float32 back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinrun.errors import SamplesError

SUM_OFF = 1e-4
"""How far weights may sum from 1: 50,000 float32 weights are off by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """One step of an answer at which the expert has something to say that the amateur does not.

    Source: LightReasoner (arXiv:2510.07962), step selection and contrastive label.

    Attributes:
        prompt_id: id of the problem.
        step: place of the token in the answer; 0 is the first answer token.
        token_ids: the plausible set V in descending weight, equal weights by ascending id.
        weights: softmax over V of log E - log A, float32 values; they sum to 1.
        kl: KL(E || A) over the vocabulary, nats, float32 value.
        tokens: the text of each id; empty where the models have no tokenizer.

    Raises:
        SamplesError: an empty set, lists of unequal length, weights that do not sum to 1, a negative step.

    Example:
        >>> StepSample(prompt_id="a", step=0, token_ids=(5, 9), weights=(0.75, 0.25), kl=0.5).token_ids
        (5, 9)
    """

    prompt_id: str
    step: int
    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    kl: float
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be a label."""
        where = f"sample {self.prompt_id!r} step {self.step}"
        if self.step < 0:
            raise SamplesError(f"{where}: steps count from 0, the first answer token")
        if not self.token_ids or len(self.token_ids) != len(self.weights):
            raise SamplesError(
                f"{where}: {len(self.token_ids)} token ids with {len(self.weights)} weights; "
                "give at least one, and one weight an id"
            )
        if self.tokens and len(self.tokens) != len(self.token_ids):
            raise SamplesError(f"{where}: {len(self.tokens)} tokens with {len(self.token_ids)} ids")
        total = math.fsum(self.weights)
        if not abs(total - 1) <= SUM_OFF or min(self.weights) < 0:
            raise SamplesError(f"{where}: weights must be at least 0 and sum to 1, they sum to {total:.6g}")
        if not math.isfinite(self.kl):
            raise SamplesError(f"{where}: KL is {self.kl}; it must be finite")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, in the order in which they are written."""
        return {
            "prompt_id": self.prompt_id,
            "step": self.step,
            "tokens": list(self.tokens),
            "token_ids": list(self.token_ids),
            "weights": [short_float(w) for w in self.weights],
            "kl": short_float(self.kl),
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StepSample:
        """Build one from a row of JSONL or Parquet.

        Raises:
            SamplesError: a column is missing or of another type, or the values are no label.
        """
        try:
            return cls(
                prompt_id=_text(row["prompt_id"]),
                step=int(row["step"]),
                token_ids=_ints(row["token_ids"]),
                weights=_floats(row["weights"]),
                kl=float(np.float32(row["kl"])),
                tokens=tuple(map(_text, row.get("tokens") or ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, SamplesError):
                raise
            raise SamplesError(f"not a row of a step ({_reason(error)})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One problem with the expert's answer, as token ids: nothing has to be tokenised again.

    Attributes:
        prompt_id: id of the problem.
        question: its text.
        prompt_ids: ids that the expert was given (chat template and system prompt included).
        answer_ids: ids that it produced, the end-of-text id included where it came to that.
        answer: their text, without special tokens.
        finished: whether it came to its end; False where `max_new_tokens` cut it off.
        index: place of the problem in the data, from 0.
        kl: KL(E || A) at every answer token, nats, float32 values; as long as `answer_ids`.
        dropped_mass: largest mass at any answer token that lay on ids that the other model lacks.
    """

    prompt_id: str
    question: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    finished: bool
    index: int
    kl: tuple[float, ...] = ()
    dropped_mass: float = 0.0

    def __post_init__(self) -> None:
        """Refuse rows that do not fit together."""
        if not self.prompt_ids:
            raise SamplesError(f"trajectory {self.prompt_id!r} has no prompt ids")
        if self.kl and len(self.kl) != len(self.answer_ids):
            raise SamplesError(
                f"trajectory {self.prompt_id!r}: {len(self.kl)} values of KL with {len(self.answer_ids)} answer ids"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, in the order in which they are written."""
        return {
            "prompt_id": self.prompt_id,
            "index": self.index,
            "question": self.question,
            "answer": self.answer,
            "finished": self.finished,
            "prompt_ids": list(self.prompt_ids),
            "answer_ids": list(self.answer_ids),
            "kl": [short_float(v) for v in self.kl],
            "dropped_mass": short_float(self.dropped_mass),
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Trajectory:
        """Build one from a row of JSONL or Parquet.

        Raises:
            SamplesError: a column is missing or of another type.
        """
        try:
            return cls(
                prompt_id=_text(row["prompt_id"]),
                question=_text(row["question"]),
                prompt_ids=_ints(row["prompt_ids"]),
                answer_ids=_ints(row["answer_ids"]),
                answer=_text(row["answer"]),
                finished=bool(row["finished"]),
                index=int(row["index"]),
                kl=_floats(row.get("kl") or ()),
                dropped_mass=float(np.float32(row.get("dropped_mass") or 0.0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, SamplesError):
                raise
            raise SamplesError(f"not a row of a trajectory ({_reason(error)})") from error


def short_float(value: float) -> float:
    """Return the double with the fewest digits that rounds to the same float32.

    Example:
        >>> short_float(0.10000000149011612)
        0.1
    """
    return float(str(np.float32(value)))


def _reason(error: Exception) -> str:
    return f"no column {error}" if isinstance(error, KeyError) else str(error)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is {type(value).__name__}, not text")
    return value


def _ints(values: Any) -> tuple[int, ...]:
    if any(isinstance(v, bool | float | str) for v in values):
        raise TypeError(f"{values!r:.40} holds something that is no integer")
    return tuple(int(v) for v in values)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=np.float32).tolist())
