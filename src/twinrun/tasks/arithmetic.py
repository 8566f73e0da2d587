"""Arithmetic word problems of one to five steps with worked answers: seeded, random-access, checkable.

Problem `i` of a split depends on `(seed, split, i)` only, so a stopped training run continues with exactly
the problems it has not seen. Its split is a property of its own text (`problem_hash` modulo 16), so a held-out
problem can never occur in a training stream, whatever the seed. It knows no model and no tokenizer.

Example:
    >>> example = problem(0, split="heldout")
    >>> is_exact(example.answer_text, example)
    True
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from random import Random
from typing import Literal

from twinrun.errors import ConfigError
from twinrun.tasks.stories import ASIDES, MOVES, NOW, PRICE, TOGETHER, Story, compare, fits, pack

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
MIN_STEPS, MAX_STEPS = 2, 5
HELDOUT_ONE_IN = 16
ENDING_STEPS = {"now": 0, "price": 1, "together": 2}
_MARK = re.compile(r"####[ \t]*\$?(-?\d[\d,]*)(\.\d)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem with its worked answer.

    Attributes:
        question: the story and the question, one line.
        answer_text: one worked line per step, then ``#### answer``.
        answer: the final number, 0 or larger.
        steps: number of worked lines.
        index: position in its split, the argument `problem` was called with.
        seed: seed of the stream.
        split: ``train`` or ``heldout``.
    """

    question: str
    answer_text: str
    answer: int
    steps: int
    index: int
    seed: int
    split: Split


def problem(
    index: int, *, seed: int = 0, split: Split = "train", steps: tuple[int, int] = (MIN_STEPS, MAX_STEPS)
) -> Problem:
    """Make problem `index` of a stream; the same arguments give the same problem in any order.

    Args:
        index: 0 or larger; streams have no end.
        seed: names the stream. Streams of one split may share problems; train and held-out never do.
        split: ``train`` or ``heldout`` (every sixteenth problem by hash).
        steps: fewest and most worked lines, from 1 to 5.

    Returns:
        A problem whose worked lines hold and whose last line is the answer.

    Raises:
        ConfigError: `index` is negative, `split` is unknown, or `steps` is no range within 1 to 5.
    """
    if index < 0:
        raise ConfigError(f"problem index must be 0 or larger, got {index}")
    if split not in SPLITS:
        raise ConfigError(f"no split named {split!r}; use one of {', '.join(SPLITS)}")
    if not 1 <= steps[0] <= steps[1] <= MAX_STEPS:
        raise ConfigError(f"steps must be fewest and most, both from 1 to {MAX_STEPS}, got {steps}")
    attempt = 0
    while True:
        question, worked = _tell(Random(f"twinrun/{seed}/{split}/{index}/{attempt}"), *steps)
        if split_of(question) == split:
            answer = int(worked[-1].rsplit(" ", 1)[1])
            text = "\n".join([*worked, f"#### {answer}"])
            return Problem(question, text, answer, len(worked), index, seed, split)
        attempt += 1


def problem_hash(question: str) -> str:
    """SHA-256 of the question text, hexadecimal: the identity of a problem."""
    return hashlib.sha256(question.encode()).hexdigest()


def split_of(question: str) -> Split:
    """The split a question belongs to, decided by its own text."""
    return "heldout" if int(problem_hash(question)[:8], 16) % HELDOUT_ONE_IN == 0 else "train"


def extract_answer(text: str) -> int | None:
    r"""Read the number after the first ``####``.

    Thousands commas and a currency sign are accepted. A fraction, a missing number or a missing mark give None.

    Example:
        >>> extract_answer("more: 1 + 2 = 3\n#### 3"), extract_answer("#### 1,204."), extract_answer("about 3")
        (3, 1204, None)
    """
    found = _MARK.search(text)
    if found is None or found[2] is not None:
        return None
    digits = found[1].rstrip(",")
    if "," in digits and not re.fullmatch(r"-?\d{1,3}(,\d{3})+", digits):
        return None
    return int(digits.replace(",", ""))


def is_exact(text: str, problem: Problem) -> bool:
    """Whether a model's answer ends in the right number; the way there is not judged."""
    return extract_answer(text) == problem.answer


def _tell(rng: Random, fewest: int, most: int) -> tuple[str, list[str]]:
    """One story: the question and its worked lines; an ending that does not fit is told anew."""
    while True:
        story = Story(rng)
        ending = rng.choices(("now", "price", "together"), (6, 3, 2))[0]
        before_end = rng.randint(fewest, most) - ENDING_STEPS[ending]
        if before_end < 0:
            continue
        story.begin()
        aside_after = rng.randint(2, 8)  # about two stories in five get a sentence that does not matter
        while len(story.worked) < before_end:
            move = rng.choice(MOVES)
            if move is pack and before_end - len(story.worked) < 2:
                continue
            if move(story) and len(story.told) == aside_after:
                story.say(ASIDES, k=rng.randint(2, 60))
        if _end(story, ending):
            return " ".join(story.told), story.worked


def _end(story: Story, ending: str) -> bool:
    """Ask the question, with the worked lines that it needs itself; False if a number is too large."""
    if ending == "now":
        story.say(NOW)
        return True
    if ending == "price":
        k = story.rng.randint(2, 5)
        if not fits(story.value * k):
            return False
        story.say(PRICE, k=k)
        story.work("euros", story.value, "*", k)
        return True
    if not compare(story) or not fits(story.before + story.value):
        return False
    first, second = story.other, story.who
    story.told.append(TOGETHER.format(item=story.item, first=first, second=second))
    story.work("together", story.before, "+", story.value)
    return True
