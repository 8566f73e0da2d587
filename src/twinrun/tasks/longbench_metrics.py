"""LongBench's metrics: what one prediction is worth against one reference, 0 to 1.

Source: Bai et al. 2023, arXiv:2308.14508, and the evaluation of its repository (THUDM/LongBench, 2e00731), whose
numbers these are, oddities included; the oddities are named where they are.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from twinrun.errors import MissingBackendError
from twinrun.tasks.longbench_rouge import edit_similarity, rouge_l

Metric = Callable[[str, str, Sequence[str]], float]
"""Called with (prediction, reference, all classes of the task)."""

ZH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"  # noqa: RUF001  these are what is removed
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001  these too
)


def qa_f1(prediction: str, reference: str, _classes: Sequence[str] = ()) -> float:
    """F1 of words, upper and lower case, punctuation and articles aside.

    Example:
        >>> round(qa_f1("The red house.", "a red barn"), 3)
        0.5
    """
    return _f1(_words(prediction), _words(reference))


def qa_f1_zh(prediction: str, reference: str, _classes: Sequence[str] = ()) -> float:
    """F1 of Chinese words as jieba cuts them, punctuation aside.

    Raises:
        MissingBackendError: jieba is not installed.
    """
    return _f1(_words_zh(prediction), _words_zh(reference))


def rouge(prediction: str, reference: str, _classes: Sequence[str] = ()) -> float:
    """Rouge-L of English."""
    return rouge_l(prediction, reference)


def rouge_zh(prediction: str, reference: str, _classes: Sequence[str] = ()) -> float:
    """Rouge-L of Chinese, over words as jieba cuts them.

    Raises:
        MissingBackendError: jieba is not installed.
    """
    return rouge_l(" ".join(_cut(prediction)), " ".join(_cut(reference)))


def classification(prediction: str, reference: str, classes: Sequence[str] = ()) -> float:
    """One over the classes that a prediction names, if the right one is among them.

    A class that is a part of the right one's name is no second answer. The official loop takes such classes out of
    the list that it walks over, so the class behind a removed one is not looked at; the published numbers have that.

    Example:
        >>> classification("Number of something, Date", "Date", ["Date", "Number of something"])
        0.5
    """
    named = [one for one in classes if one in prediction]
    at = 0
    while at < len(named):
        if named[at] in reference and named[at] != reference:
            del named[at]
        at += 1
    return 1.0 / len(named) if reference in named else 0.0


def retrieval(prediction: str, reference: str, _classes: Sequence[str] = ()) -> float:
    """Share of the numbers in a prediction that are the number in the reference ("Paragraph 7", "段落7").

    Example:
        >>> retrieval("Paragraph 7 or 8", "Paragraph 7")
        0.5
    """
    wanted = re.findall(r"(?:Paragraph |段落)(\d+)", reference)
    return count(prediction, wanted[0]) if wanted else 0.0


def count(prediction: str, reference: str, _classes: Sequence[str] = ()) -> float:
    """Share of the numbers in a prediction that are the reference.

    Example:
        >>> count("12, no: 13", "13")
        0.5
    """
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(reference)) / len(numbers) if numbers else 0.0


def code_similarity(prediction: str, reference: str, _classes: Sequence[str] = ()) -> float:
    r"""Edit similarity of the first line of code: the first without a backtick or the sign of a comment.

    Example:
        >>> code_similarity("# next\nreturn x", "return x")
        1.0
    """
    lines = prediction.lstrip("\n").split("\n")
    first = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return edit_similarity(first, reference)


def _words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _words_zh(text: str) -> list[str]:
    dropped = set(string.punctuation + ZH_PUNCTUATION)
    words = ("".join(c for c in one.lower() if c not in dropped) for one in _cut(text))
    return [kept for one in words if (kept := "".join(one.split()))]


def _f1(mine: Sequence[str], theirs: Sequence[str]) -> float:
    same = sum((Counter(mine) & Counter(theirs)).values())
    if not same:
        return 0.0
    precision, recall = same / len(mine), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def _cut(text: str) -> list[str]:
    return list(_jieba().cut(text, cut_all=False))


@cache
def _jieba() -> Any:
    try:
        import jieba
    except ImportError as error:
        raise MissingBackendError(
            "LongBench's Chinese tasks are scored by words that jieba cuts, and it is not installed; "
            "pip install 'twinrun[longbench]', or leave those tasks out"
        ) from error
    jieba.setLogLevel(60)
    return jieba
