"""Settings of one evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from twinrun.errors import ConfigError, near_names
from twinrun.tasks.longbench import LONGBENCH
from twinrun.tasks.retrieval import TASKS

MODES = ("end", "unseen")
PREFIX = "longbench:"
GROUPS = {"ruler": TASKS, "longbench": tuple(PREFIX + name for name in LONGBENCH)}
CHAT = ("auto", "on", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """What is asked, and how. Invalid settings cannot be built.

    Attributes:
        tasks: RULER-style tasks by name ("ruler" is all six) and `longbench:NAME` ("longbench" is all 21).
        lengths: tokens of a RULER-style item, answer included; LongBench items are cut to these in the middle.
        modes: "end": the question stands at the end of the prompt that a runner prunes. "unseen": the runner prunes
            the context alone, the question follows into that very cache.
    """

    tasks: tuple[str, ...] = field(default=TASKS, metadata={"help": "tasks by name"})
    lengths: tuple[int, ...] = field(default=(512, 1024), metadata={"help": "tokens of an item"})
    modes: tuple[str, ...] = field(default=MODES, metadata={"help": "where the question stands: end, unseen"})
    items: int = field(default=50, metadata={"help": "items a task and length"})
    batch: int = field(default=1, metadata={"help": "items run together, padded on the left"})
    seed: int = field(default=0, metadata={"help": "of the items and of the intervals"})
    digits: int | None = field(
        default=None, metadata={"help": "digits of a number to find; unset: RULER's (7; 5 for variables)"}
    )
    answer_tokens: int | None = field(
        default=None, metadata={"help": "tokens an answer may have; unset: RULER's and LongBench's own"}
    )
    start: str = field(default="", metadata={"help": "text before every prompt, a start token say"})
    chat: str = field(
        default="auto", metadata={"help": "LongBench's chat wrap: auto (if there is one), on, off"}
    )
    data: str | None = field(default=None, metadata={"help": "LongBench's folder, data.zip, or hub"})

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for name in ("tasks", "lengths", "modes"):
            given = getattr(self, name)
            if not given:
                raise ConfigError(f"no {name}; give at least one")
            twice = next((v for v in given if given.count(v) > 1), None)
            if twice is not None:
                raise ConfigError(f"{twice!r} is given twice in {name}; give it once")
        _check_tasks(self.tasks)
        _check_words(self.modes, MODES, "where the question stands")
        _check_words((self.chat,), CHAT, "chat")
        short = next((n for n in self.lengths if n < 16), None)
        if short is not None:
            raise ConfigError(f"lengths start at 16 tokens, got {short}")
        for name in ("items", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("digits", "answer_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.data is None and any(task.startswith(PREFIX) for task in self.tasks):
            raise ConfigError(
                "LongBench's texts are not part of this package; give its folder or data.zip (--data)"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EvalSettings:
        """Build from keywords; "ruler" and "longbench" stand for all their tasks; an unknown keyword is an error."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"unknown setting {name!r}; an evaluation takes {', '.join(known)}.{near_names(name, known)}"
                )
        lists = {name: tuple(given[name]) for name in ("lengths", "modes") if name in given}
        tasks = {"tasks": spelled_out(given["tasks"])} if "tasks" in given else {}
        return cls(**{**given, **lists, **tasks})


def spelled_out(tasks: Iterable[str]) -> tuple[str, ...]:
    """Put the tasks of a group in its place.

    Example:
        >>> spelled_out(["ruler"])[0]
        'niah_single'
    """
    return tuple(name for task in tasks for name in GROUPS.get(task, (task,)))


def _check_tasks(tasks: Iterable[str]) -> None:
    known = (*TASKS, *GROUPS["longbench"], *GROUPS)
    for task in tasks:
        if task not in known:
            raise ConfigError(
                f"no task named {task!r}.{near_names(task, known)} There are: {', '.join(TASKS)}, and "
                f"{PREFIX}NAME for {', '.join(LONGBENCH)}"
            )


def _check_words(given: Iterable[str], known: tuple[str, ...], what: str) -> None:
    for word in given:
        if word not in known:
            raise ConfigError(f"{what} is {' or '.join(known)}, got {word!r}.{near_names(word, known)}")
