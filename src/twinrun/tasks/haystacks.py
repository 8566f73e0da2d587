"""How a retrieval task is told: each builder turns a random source and an extent into one text with its questions.

The wording follows RULER's templates. Builders know nothing of splits, seeds or models; `twinrun.tasks.retrieval`
does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

from twinrun.tasks.words import PAIRS, TOTAL, pair, word

NOISE = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COMMON, COMMON_TIMES, OTHER_TIMES = 10, 6, 1  # RULER's numbers below 4,096 tokens
FREQUENT, ZETA = 3, 2.0
VARIABLE_LETTERS, CODED_LETTERS = 5, 6


class Asked(NamedTuple):
    """One question about a text: how it is put, how its answer begins, and what the answer must hold, in order."""

    question: str
    answer_prefix: str
    answers: tuple[str, ...]


class Told(NamedTuple):
    """One text and everything that can be asked about it, in random order."""

    context: str
    asked: tuple[Asked, ...]


class Extent(NamedTuple):
    """How large a text is: units of its haystack, digits of a value, steps of a chain of variables."""

    size: int
    digits: int
    hops: int


def number(rng: Random, digits: int) -> str:
    """A number of exactly so many digits."""
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def uuid(rng: Random) -> str:
    """A random identifier in the form of a UUID."""
    text = f"{rng.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def names(rng: Random, count: int, letters: int) -> list[str]:
    """Different random words of so many letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(LETTERS, k=letters))] = None
    return list(found)


def scattered(rng: Random, needles: Sequence[str], size: int) -> str:
    """Needles at random places of the noise, in their order; `size` sentences of noise."""
    places = Counter(rng.choices(range(size + 1), k=len(needles)))
    queue, sentences = iter(needles), []
    for i in range(size + 1):
        sentences += [next(queue) for _ in range(places[i])]
        if i < size:
            sentences.append(NOISE[i % len(NOISE)])
    return " ".join(sentences)


def _told(rng: Random, kind: str, pairs: Sequence[tuple[str, str]], size: int | None = None) -> Told:
    """Needles in noise of `size` sentences, or among themselves; each can be asked for."""
    lines = [f"One of the special magic {kind} for {key} is: {value}." for key, value in pairs]
    asked = [
        Asked(
            f"What is the special magic {kind[:-1]} for {key} mentioned in the text?",
            f"The special magic {kind[:-1]} for {key} is:",
            (value,),
        )
        for key, value in rng.sample(pairs, len(pairs))
    ]
    haystack = " ".join(lines) if size is None else scattered(rng, lines, size)
    begin = f"Some special magic {kind} are hidden within the following text. Make sure to memorize it."
    return Told(f"{begin}\n{haystack}", tuple(asked))


def needle(rng: Random, extent: Extent) -> Told:
    """One number in noise (RULER's niah_single_1)."""
    return _told(rng, "numbers", [(pair(rng.randrange(PAIRS)), number(rng, extent.digits))], extent.size)


def needles(rng: Random, extent: Extent) -> Told:
    """Nothing but needles, one is asked for (RULER's niah_multikey_2); `size` needles."""
    keys = rng.sample(range(PAIRS), extent.size)
    return _told(rng, "numbers", [(pair(key), number(rng, extent.digits)) for key in keys])


def uuids(rng: Random, extent: Extent) -> Told:
    """Nothing but needles from identifier to identifier (RULER's niah_multikey_3); `size` needles."""
    return _told(rng, "uuids", [(uuid(rng), uuid(rng)) for _ in range(extent.size)])


def variables(rng: Random, extent: Extent) -> Told:
    """A chain of assignments in noise; all names of one value are asked for (RULER's vt)."""
    chain, value = names(rng, extent.hops + 1, VARIABLE_LETTERS), number(rng, extent.digits)
    chain = [name.upper() for name in chain]
    lines = [f"VAR {chain[0]} = {value}."]
    lines += [f"VAR {new} = VAR {old}." for old, new in pairwise(chain)]
    return Told(
        f"Memorize and track the chain of variable assignment hidden in the following text.\n"
        f"{scattered(rng, lines, extent.size)}",
        (
            Asked(
                f"Find all variables that are assigned the value {value} in the text above.",
                f"The variables assigned the value {value} are:",
                tuple(chain),
            ),
        ),
    )


def common(rng: Random, extent: Extent) -> Told:
    """A numbered list; ten words stand in it six times (RULER's cwe); `size` other words stand in it once."""
    drawn = [word(i) for i in rng.sample(range(TOTAL), extent.size + COMMON)]
    chosen = drawn[:COMMON]
    listed = chosen * COMMON_TIMES + drawn[COMMON:] * OTHER_TIMES
    rng.shuffle(listed)
    return Told(
        "Below is a numbered list of words. Some of them appear more often than others. Memorize them.\n"
        + " ".join(f"{i}. {one}" for i, one in enumerate(listed, 1)),
        (
            Asked(
                f"What are the {COMMON} most common words in the list?",
                f"The {COMMON} most common words are:",
                tuple(sorted(chosen)),
            ),
        ),
    )


def frequent(rng: Random, extent: Extent) -> Told:
    """Coded words whose frequency falls with their rank; the three first are asked for (RULER's fwe); `size` words.

    The word of rank k stands there about k**-2 of the time; rank 0 is a row of dots and does not count.
    """
    coded = names(rng, max(FREQUENT, extent.size // 50) + 1, CODED_LETTERS)
    shares = [(rank + 1) ** -ZETA for rank in range(len(coded) + 1)]
    counts = [max(1, round(extent.size * share / sum(shares))) for share in shares]
    for rank in range(FREQUENT, -1, -1):  # every rank that is asked for must be told from the next
        counts[rank] = max(counts[rank], counts[rank + 1] + 1)
    listed = ["..."] * counts[0]
    for name, times in zip(coded, counts[1:], strict=True):
        listed += [name] * times
    rng.shuffle(listed)
    return Told(
        "Read the following coded text and track the frequency of each coded word.\n" + " ".join(listed),
        (
            Asked(
                f"Do not count dots. What are the {FREQUENT} most frequent words in the text above?",
                f"The {FREQUENT} most frequent words are:",
                tuple(coded[:FREQUENT]),
            ),
        ),
    )


BUILDERS: dict[str, Callable[[Random, Extent], Told]] = {
    "niah_single": needle,
    "niah_multikey": needles,
    "niah_multikey_uuid": uuids,
    "variable_tracking": variables,
    "common_words": common,
    "frequent_words": frequent,
}
