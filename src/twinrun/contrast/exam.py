"""Problems that a model is examined on, each with its reference: generated ones that were held out, or a JSONL file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinrun.contrast.files import json_lines
from twinrun.contrast.samples import Trajectory
from twinrun.errors import ConfigError, SamplesError
from twinrun.tasks.arithmetic import MAX_STEPS, MIN_STEPS, SPLITS, problem
from twinrun.tasks.final_answer import final_answer, same_answer

ARITHMETIC = "builtin:arithmetic"
DEFAULT_LIMIT = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamItem:
    """One problem.

    Attributes:
        prompt_id: its id.
        question: its text.
        reference: an answer that ends in the right number.
        stratum: what the intervals are drawn within (number of steps, or the file).
        marked_only: whether only a number behind ``####`` counts.
    """

    prompt_id: str
    question: str
    reference: str
    stratum: str
    marked_only: bool = False

    def is_right(self, answer: str) -> bool:
        """Whether an answer ends in the right number."""
        return same_answer(answer, self.reference, marked_only=self.marked_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamSettings:
    """Which problems.

    Attributes:
        source: "builtin:arithmetic" (held out: no training problem of any seed can be among them), or a JSONL file with
            `question` and `answer` (GSM8K's layout), and maybe `id`.
        limit: problems at most; None is 2,000 generated ones, all of a file.
        seed: stream of the generated ones.
        steps: fewest and most worked lines of the generated ones.

    Raises:
        ConfigError: a limit below 1, or steps that are no range within 1 to 5.
    """

    source: str = ARITHMETIC
    limit: int | None = None
    seed: int = 200
    steps: tuple[int, int] = (MIN_STEPS, MAX_STEPS)

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1 problem, got {self.limit}")
        if not 1 <= self.steps[0] <= self.steps[1] <= MAX_STEPS:
            raise ConfigError(f"steps must be fewest and most, both from 1 to {MAX_STEPS}, got {self.steps}")


def exam(settings: ExamSettings) -> list[ExamItem]:
    """Return the problems.

    Raises:
        SamplesError: an unreadable file or a line that is none; names file and line.
        ConfigError: a file without problems.
    """
    if settings.source != ARITHMETIC:
        return _of_file(Path(settings.source), settings.limit)
    limit = DEFAULT_LIMIT if settings.limit is None else settings.limit
    found = (problem(i, seed=settings.seed, split="heldout", steps=settings.steps) for i in range(limit))
    return [
        ExamItem(
            prompt_id=f"arithmetic/heldout/{p.seed}/{p.index}",
            question=p.question,
            reference=p.answer_text,
            stratum=f"{p.steps} steps",
            marked_only=True,
        )
        for p in found
    ]


def references(source: str, ids: Iterable[str]) -> dict[str, str]:
    """Reference answers by problem id, for the problems that samples were made of.

    Args:
        source: where the samples' problems came from, "builtin:arithmetic" or a JSONL file with `answer`.
        ids: the ids that are wanted.

    Raises:
        SamplesError: an id that the source does not have.
    """
    wanted = list(dict.fromkeys(ids))
    if source == ARITHMETIC:
        return {name: _generated(name) for name in wanted}
    held = {item.prompt_id: item.reference for item in _of_file(Path(source), None)}
    missing = next((name for name in wanted if name not in held), None)
    if missing is not None:
        raise SamplesError(
            f"{source} has no answer for problem {missing!r:.60}; give the file that was sampled"
        )
    return {name: held[name] for name in wanted}


def judge_by(held: Mapping[str, str]) -> Callable[[Trajectory], bool]:
    """Return what says whether an answer of the samples is right."""

    def is_right(answer: Trajectory) -> bool:
        return answer.finished and same_answer(answer.answer, held[answer.prompt_id])

    return is_right


def _generated(name: str) -> str:
    kind, _, rest = name.partition("/")
    split, _, numbers = rest.partition("/")
    seed, _, index = numbers.partition("/")
    if kind != "arithmetic" or split not in SPLITS or not (seed.isdigit() and index.isdigit()):
        raise SamplesError(f"{name!r:.60} is no problem of {ARITHMETIC}; name the file that was sampled")
    return problem(int(index), seed=int(seed), split=split).answer_text


def _of_file(path: Path, limit: int | None) -> list[ExamItem]:
    found: dict[str, ExamItem] = {}
    for number, row in json_lines(path):
        if limit is not None and len(found) >= limit:
            break
        item = _item(row, f"{path} line {number}", path.stem)
        first = found.setdefault(item.prompt_id, item)
        if first.question != item.question:
            raise SamplesError(
                f"{path} line {number}: id {item.prompt_id!r:.60} stands for another question earlier; give each "
                "problem its own id"
            )
    if not found:
        raise ConfigError(f"{path} holds no problem; give lines with question and answer")
    return list(found.values())


def _item(row: Any, where: str, stratum: str) -> ExamItem:
    question, answer = (row.get(key) if isinstance(row, dict) else None for key in ("question", "answer"))
    answer = str(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else answer
    if not isinstance(question, str) or not question.strip() or not isinstance(answer, str):
        raise SamplesError(f"{where} has no text under 'question' and 'answer'")
    if final_answer(answer) is None:
        raise SamplesError(
            f"{where}: the answer {answer[-40:]!r} ends in no number; this exam judges numbers only"
        )
    name = row.get("id")
    own = hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:16]
    return ExamItem(
        prompt_id=own if name in (None, "") else str(name),
        question=question,
        reference=answer,
        stratum=stratum,
    )
