"""Rouge-L and edit similarity as LongBench counts them.

LongBench takes Rouge-L from the package `rouge` (1.0.1), which counts distinct words, sentence by sentence, and
recursively: it gives up on long sentences. This is the same number without recursion and without the package, which
has had no release since 2021. `tests/unit/test_longbench_packages.py` holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

TINY = 1e-8
"""What `rouge` adds to the denominator of F; without it the last digits differ."""


def rouge_l(prediction: str, reference: str) -> float:
    """F of Rouge-L at the level of summaries, 0 to 1; 0 where a side has no word.

    Source: Lin 2004, section 3.2 (union of longest common subsequences over sentences), as in `rouge` 1.0.1: sentences
    end at a full stop, words at blanks, and every word counts once a text.

    Cost: a product of the word counts for each pair of sentences.

    Example:
        >>> round(rouge_l("the cat sat. it slept", "the cat slept"), 4)
        0.75
    """
    said, wanted = _sentences(prediction), _sentences(reference)
    mine = {word for sentence in said for word in sentence}
    theirs = {word for sentence in wanted for word in sentence}
    if not mine or not theirs:
        return 0.0
    common: set[str] = set()
    for one in wanted:
        for other in said:
            common.update(_subsequence(one, other))
    precision, recall = len(common) / len(mine), len(common) / len(theirs)
    return 2.0 * precision * recall / (precision + recall + TINY)


def edit_similarity(a: str, b: str) -> float:
    """Share of two texts that difflib's matching blocks cover, in whole hundredths, 0 to 1.

    Source: `fuzz.ratio` of fuzzywuzzy as LongBench's requirements install it. With python-Levenshtein beside it, which
    they do not name, fuzzywuzzy counts another similarity, and published numbers differ by that.

    Example:
        >>> edit_similarity("return x", "return y")
        0.88
    """
    if a == b:
        return 1.0
    if not a or not b:
        return 0.0
    return round(100 * SequenceMatcher(None, a, b).ratio()) / 100


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence. `rouge` sees an empty word in a sentence of blanks alone, so it is one here too."""
    return [part.split() or [""] for part in text.split(".") if part]


def _lengths(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """`[len(a) + 1, len(b) + 1]`: length of the longest common subsequence of every two beginnings."""
    codes: dict[str, int] = {}
    other = np.array([codes.setdefault(item, len(codes)) for item in b], dtype=np.int64)
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)
    for i, item in enumerate(a, 1):
        same = other == codes.get(item, -1)
        best = np.maximum(table[i - 1, 1:], np.where(same, table[i - 1, :-1] + 1, 0))
        table[i, 1:] = np.maximum.accumulate(best)
    return table


def _subsequence(x: Sequence[str], y: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence: that of `rouge`, which walks back and prefers to shorten `y`."""
    if not set(x) & set(y):
        return set()
    table = _lengths(x, y)
    found, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.add(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found
