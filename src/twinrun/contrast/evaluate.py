"""Zero-shot pass@1 of several models on the same problems, with paired intervals of their differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twinrun.contrast.exam import ExamItem
from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.quality.paired import interval, paired
from twinrun.runners.kvcache import KVCache

INTERVALS = (
    "95 % intervals: percentiles of 10,000 bootstrap samples of the problems, drawn within each stratum, both sides on "
    "the same problems; p: exact McNemar test (two-sided) of the problems on which the sides differ"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """How problems are put and answers made: greedily, one answer a problem (pass@1), no examples (zero-shot).

    Raises:
        ConfigError: a size below 1.
    """

    max_new_tokens: int = 256
    batch_size: int = 64
    chat: bool = True
    system_prompt: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one model answered: texts, and which of them are right, in the order of the problems."""

    texts: tuple[str, ...]
    right: tuple[bool, ...]
    finished: tuple[bool, ...]


def answer_all(
    model: Model,
    items: Sequence[ExamItem],
    settings: AnswerSettings | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Answers:
    """Let a model answer every problem, greedily.

    Problems of like length share a batch; a batch gives what each of its rows gives alone, to rounding.

    Raises:
        ConfigError: a prompt that does not fit the context, or no chat template.

    Cost: one cached run a batch.
    """
    chosen = settings or AnswerSettings()
    prompts = [_prompt(model, item, chosen) for item in items]
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    runner = KVCache(model)
    texts, finished = [""] * len(items), [False] * len(items)
    for at in range(0, len(order), chosen.batch_size):
        rows = order[at : at + chosen.batch_size]
        run = runner.generate([prompts[i] for i in rows], _room(model, prompts[rows[-1]], chosen))
        for i, text, why in zip(rows, run.texts or [], run.finish, strict=True):
            texts[i], finished[i] = text, why == "eos"
        on_progress(at + len(rows), len(items))
    right = tuple(item.is_right(text) for item, text in zip(items, texts, strict=True))
    return Answers(texts=tuple(texts), right=right, finished=tuple(finished))


def compare(items: Sequence[ExamItem], answered: Mapping[str, Answers]) -> dict[str, Any]:
    """Scores of every side, and each pair of sides against each other on the same problems.

    Args:
        items: the problems.
        answered: side -> its answers; every later side is held against every earlier one.

    Returns:
        Plain JSON: `sides` (share right, interval, by stratum), `pairs` (difference of the later minus the earlier with
        its paired interval, counts, McNemar's p), `intervals` (how they were made).

    Raises:
        ConfigError: no sides.
    """
    if not answered:
        raise ConfigError("nothing was examined; give at least one model")
    strata = [item.stratum for item in items]
    scores = {name: [float(r) for r in found.right] for name, found in answered.items()}
    names = list(scores)
    pairs = [
        {"a": after, "b": before, **paired(scores[after], scores[before], strata)}
        for i, after in enumerate(names)
        for before in names[:i]
    ]
    sides = {name: _side(scores[name], strata, answered[name]) for name in names}
    return {"items": len(items), "sides": sides, "pairs": pairs, "intervals": INTERVALS}


def _side(scores: Sequence[float], strata: Sequence[str], answers: Answers) -> dict[str, Any]:
    low, high = interval(scores, strata)
    groups: dict[str, dict[str, float]] = {}
    for name in sorted(set(strata)):
        own = [s for s, stratum in zip(scores, strata, strict=True) if stratum == name]
        groups[name] = {"right": sum(own), "items": len(own)}
    return {
        "right": int(sum(scores)),
        "accuracy": sum(scores) / len(scores),
        "low": low,
        "high": high,
        "unfinished": answers.finished.count(False),
        "strata": groups,
    }


def _prompt(model: Model, item: ExamItem, settings: AnswerSettings) -> list[int]:
    try:
        if not settings.chat:
            return model.encode(item.question, new_tokens=1)
        return model.chat(item.question, system=settings.system_prompt)
    except ConfigError as error:
        raise ConfigError(f"problem {item.prompt_id!r:.60}: {error}") from error


def _room(model: Model, longest: Sequence[int], settings: AnswerSettings) -> int:
    """New tokens that fit behind the longest prompt of a batch."""
    limit = model.max_context
    return (
        settings.max_new_tokens
        if limit is None
        else max(1, min(settings.max_new_tokens, limit - len(longest)))
    )


def request(settings: AnswerSettings) -> dict[str, Any]:
    """Plain JSON of how answers were made."""
    return {**asdict(settings), "decoding": "greedy, one answer a problem, no examples"}
