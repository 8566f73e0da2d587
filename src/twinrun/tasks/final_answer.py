r"""The final number of a worked answer, however a model was taught to mark it: ``####``, ``\boxed{}``, words, last.

Source: GSM8K's own mark (arXiv:2110.14168) and the order of the Qwen2.5-Math evaluation toolkit: a marked answer
first, then the box, then "answer is", then the last number of the text.

Example:
    >>> final_answer(r"So 3 + 4 = \boxed{7} apples.") == final_answer("#### 7.0")
    True
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"[-−]?\$?\s*(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*/\s*\d+)?"
_MARKED = re.compile(rf"####\s*({_NUMBER})")
_BOX = re.compile(r"\\boxed\s*\{")
_SAID = re.compile(rf"answer(?: is|:)\s*:?\s*({_NUMBER})", re.IGNORECASE)
_ANY = re.compile(_NUMBER)
_LATEX_FRACTION = re.compile(r"\\d?frac\s*\{(-?\d+)\}\s*\{(\d+)\}")


def final_answer(text: str, *, marked_only: bool = False) -> Fraction | None:
    """Return the number that an answer ends in, exactly, or None if there is none.

    Thousands commas, currency signs and a unit behind the number are accepted; the value decides, so 18, 18.0 and
    18.00 are one answer.

    Args:
        text: the whole answer.
        marked_only: accept a number behind ``####`` only.

    Example:
        >>> final_answer("#### $1,204"), final_answer("It is 3 or 4."), final_answer("none")
        (Fraction(1204, 1), Fraction(4, 1), None)
    """
    marked = _MARKED.search(text)
    if marked or marked_only:
        return _value(marked[1]) if marked else None
    boxed = _last_box(text)
    if boxed is not None:
        return _last_number(boxed)
    said = _SAID.findall(text)
    return _value(said[-1]) if said else _last_number(text)


def same_answer(text: str, reference: str, *, marked_only: bool = False) -> bool:
    """Whether an answer ends in the same number as the reference; a missing number is never right.

    Example:
        >>> same_answer("the answer is 12.", "#### 12"), same_answer("no idea", "#### 12")
        (True, False)
    """
    found = final_answer(text, marked_only=marked_only)
    return found is not None and found == final_answer(reference)


def _last_box(text: str) -> str | None:
    """What stands in the last box, braces inside it matched; None without a closed one."""
    for start in reversed([m.end() for m in _BOX.finditer(text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at]
    return None


def _last_number(text: str) -> Fraction | None:
    found = _ANY.findall(_LATEX_FRACTION.sub(r"\1/\2", text))
    return _value(found[-1]) if found else None


def _value(text: str) -> Fraction | None:
    plain = re.sub(r"[$,\s]", "", text).replace("−", "-")
    try:
        return Fraction(plain.rstrip(".")) if "/" not in plain else Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None
