"""One thing to try on both sides: rows of token ids that are scored together, and where each row's prompt ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from twinrun.errors import ConfigError
from twinrun.records.tokens import first_difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A batch of rows (one row for an ordinary prompt).

    `starts[i]` tokens of row i are prompt: a cached runner takes them in one forward and the rest one by
    one. With `same_before=(label, position)` the rows' logits at earlier positions must equal those of the
    named
    case: the two differ only from that position on, and a causal model cannot know.
    """

    label: str
    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    same_before: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        """Check that every row has a start inside it."""
        if not self.rows or len(self.rows) != len(self.starts):
            raise ConfigError(
                f"case {self.label!r} has {len(self.rows)} rows and {len(self.starts)} starts; "
                "give one start a row"
            )
        for row, start in zip(self.rows, self.starts, strict=True):
            if not 1 <= start <= len(row):
                raise ConfigError(
                    f"case {self.label!r}: start {start} in a row of {len(row)} tokens; it must "
                    "lie from 1 to the row's length"
                )

    @property
    def num_positions(self) -> int:
        """Rows of logits that scoring this case gives."""
        return sum(len(row) - start + 1 for row, start in zip(self.rows, self.starts, strict=True))


def prompt_case(label: str, ids: Sequence[int]) -> Case:
    """A single row whose first half is prompt, so that both the prompt's forward and single steps are exercised."""
    return Case(label=label, rows=(tuple(ids),), starts=(max(1, len(ids) // 2),))


def as_cases(prompts: Iterable[Any], reference: Any, candidate: Any) -> list[Case]:
    """Turn prompts (texts, token ids, cases) into cases; texts are encoded by both sides, which must agree.

    Raises:
        ConfigError: nothing to try, a text where no side has a tokenizer, or tokenizers that disagree
            (first id named).
    """
    if isinstance(prompts, (str, Case)):
        prompts = [prompts]
    cases = []
    for number, prompt in enumerate(prompts, 1):
        if isinstance(prompt, Case):
            cases.append(prompt)
            continue
        label = f"prompt {number}"
        ids = _encode(prompt, reference, label)
        other = _encode(prompt, candidate, label) if isinstance(prompt, str) and _reads(candidate) else ids
        if ids != other:
            at = first_difference(ids, other)
            raise ConfigError(
                f"{label} is tokenised differently by the two sides, first at token {at}: "
                f"{ids[at : at + 1]} and {other[at : at + 1]}; load both with one tokenizer"
            )
        cases.append(prompt_case(label, ids))
    if not cases:
        raise ConfigError("no prompts were given; pass texts, token ids, or tr.probes(model)")
    return cases


def _reads(side: Any) -> bool:
    """Whether a side has a tokenizer of its own; one without takes the reference's ids."""
    return getattr(getattr(side, "model", None), "tokenizer", None) is not None


def _encode(prompt: Any, side: Any, label: str) -> list[int]:
    reader: Any = side if hasattr(side, "encode") else getattr(side, "model", None)
    if hasattr(reader, "encode"):
        return list(reader.encode(prompt))
    if isinstance(prompt, str):
        raise ConfigError(f"{label} is a text and {type(side).__name__} has no model.encode; give token ids")
    ids = [int(i) for i in prompt]
    if not ids:
        raise ConfigError(f"{label} is empty; give at least one token")
    return ids
