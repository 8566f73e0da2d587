"""Retrieval over long texts with checkable answers, in the manner of RULER: seeded, random-access, any length.

Six tasks that need no corpus: a number in noise, a number or an identifier among others of its kind, a chain of
variables, the most common words of a list, the most frequent words of a coded text. What is read and what is asked
are kept apart, so that a runner can be judged with the question in sight or out of it.

Source: Hsieh et al. 2024, arXiv:2404.06654 (tasks, templates, scoring by the share of references found).

Example:
    >>> item = retrieval(0, RetrievalSettings(task="niah_multikey", size=8, digits=4))
    >>> recall(f"It is {item.answers[0]}.", item)
    1.0
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from twinrun.errors import ConfigError, near_names
from twinrun.tasks.arithmetic import HELDOUT_ONE_IN, SPLITS, Split
from twinrun.tasks.haystacks import BUILDERS, Asked, Extent
from twinrun.tasks.words import TOTAL

TASKS = tuple(BUILDERS)
MULTIKEY = ("niah_multikey", "niah_multikey_uuid")
MAX_SIZE = {"niah_multikey": 6000, "common_words": TOTAL - 10}  # distinct keys and words that there are


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalSettings:
    """Which task, and how large.

    Attributes:
        task: one of `TASKS`.
        size: units of the haystack, 1 or larger: sentences of noise (`niah_single`, `variable_tracking`), needles
            (`niah_multikey`, `niah_multikey_uuid`), other words of the list (`common_words`), words of the text
            (`frequent_words`, at least 10). `fit_size` finds it for a number of tokens.
        digits: digits of a value that is a number, 1 to 12. RULER: 7 for needles, 5 for variables.
        queries: questions about one text, 1 or larger; more than one in `niah_multikey` and `niah_multikey_uuid`.
        hops: steps of the chain of variables, 1 to 16; one name more than steps is asked for. RULER: 4.
        seed: names the stream.
        split: ``train`` or ``heldout``; question and answer decide by their hash, so that no pair occurs in both.
    """

    task: str
    size: int
    digits: int = 7
    hops: int = 4
    queries: int = 1
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        """Refuse what cannot be told."""
        if self.task not in BUILDERS:
            hint = near_names(self.task, list(TASKS))
            raise ConfigError(f"no retrieval task named {self.task!r}.{hint} There are: {', '.join(TASKS)}")
        if self.split not in SPLITS:
            raise ConfigError(f"no split named {self.split!r}; use one of {', '.join(SPLITS)}")
        fewest = 10 if self.task == "frequent_words" else 1
        most = MAX_SIZE.get(self.task)
        if self.size < fewest or (most is not None and self.size > most):
            end = f"{fewest} to {most}" if most is not None else f"{fewest} or larger"
            raise ConfigError(f"size of {self.task} must be {end}, got {self.size}")
        for field, value, last in (("digits", self.digits, 12), ("hops", self.hops, 16)):
            if not 1 <= value <= last:
                raise ConfigError(f"{field} must be 1 to {last}, got {value}")
        most = max(1, self.size // 2) if self.task in MULTIKEY else 1
        if not 1 <= self.queries <= most:
            raise ConfigError(
                f"queries of {self.task} at size {self.size} must be 1 to {most}, got {self.queries}"
            )


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One text with what is asked about it.

    Attributes:
        context: what is read.
        asked: the questions, each with the beginning of its answer and what the answer must hold.
        index: the argument `retrieval` was called with.
        settings: its settings.
    """

    context: str
    asked: tuple[Asked, ...]
    index: int
    settings: RetrievalSettings

    @property
    def answers(self) -> tuple[str, ...]:
        """What an answer to the first question must hold."""
        return self.asked[0].answers

    @property
    def prompt(self) -> str:
        """Text and first question, up to where the answer goes on; the answer begins with a blank."""
        return f"{self.context}\n{question_text(self.asked[0])}"

    @property
    def answer_text(self) -> str:
        """A right answer behind the prompt."""
        return answer_text(self.asked[0])


def question_text(asked: Asked) -> str:
    """A question with the beginning of its answer."""
    return f"{asked.question}\n{asked.answer_prefix}"


def answer_text(asked: Asked) -> str:
    """A right answer to a question, as it goes on behind the beginning."""
    return " " + ", ".join(asked.answers)


def retrieval(index: int, settings: RetrievalSettings) -> Retrieval:
    """Make text `index` of a stream; the same arguments give the same text in any order.

    Raises:
        ConfigError: `index` is negative.

    Cost: about a microsecond a word; a held-out text with one question, sixteen times that.
    """
    if index < 0:
        raise ConfigError(f"index must be 0 or larger, got {index}")
    extent = Extent(settings.size, settings.digits, settings.hops)
    attempt = 0
    while True:
        source = f"twinrun/{settings.task}/{settings.seed}/{settings.split}/{index}/{attempt}"
        told = BUILDERS[settings.task](Random(source), extent)
        own = tuple(asked for asked in told.asked if split_of(asked) == settings.split)
        if len(own) >= settings.queries:
            return Retrieval(told.context, own[: settings.queries], index, settings)
        attempt += 1


def split_of(asked: Asked) -> Split:
    """The split of a question with its answers, decided by their own text."""
    digest = hashlib.sha256("\n".join((asked.question, *asked.answers)).encode()).hexdigest()
    return "heldout" if int(digest[:8], 16) % HELDOUT_ONE_IN == 0 else "train"


def recall(text: str, item: Retrieval) -> float:
    """Share of the answers that a text holds, 0 to 1, upper and lower case alike (RULER's string_match_all)."""
    lower = text.lower()
    return sum(answer.lower() in lower for answer in item.answers) / len(item.answers)


def is_exact(text: str, item: Retrieval) -> bool:
    """Whether a model's text begins with the right answers in the right order and nothing else on its line."""
    return text.strip().splitlines()[:1] == [item.answer_text.strip()]


def fit_size(settings: RetrievalSettings, tokens: int, count: Callable[[str], int]) -> int:
    """Largest `size` whose text, with prompt and answer, has at most `tokens` tokens.

    Args:
        settings: the task; its own `size` does not matter.
        tokens: room, including the answer.
        count: tokens of a text, by the tokenizer of the model on trial.

    Raises:
        ConfigError: not even the smallest text fits.

    Cost: about twice the binary logarithm of the result, in texts told and counted.

    Example:
        >>> fit_size(RetrievalSettings(task="niah_single", size=1), 100, lambda text: len(text.split()))
        14
    """

    def fits(size: int) -> bool:
        queries = min(settings.queries, max(1, size // 2))
        item = retrieval(0, replace(settings, size=size, queries=queries))
        rest = [question_text(asked) + answer_text(asked) for asked in item.asked]
        return count("\n".join([item.context, *rest])) <= tokens

    low = 10 if settings.task == "frequent_words" else 1
    most = MAX_SIZE.get(settings.task, 1 << 30)
    if not fits(low):
        raise ConfigError(f"no text of {settings.task} is as short as {tokens} tokens; give it more room")
    high = low
    while high < most and fits(min(2 * high, most)):
        high = min(2 * high, most)
    low, high = high, min(2 * high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
