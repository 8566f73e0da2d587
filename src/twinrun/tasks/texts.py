"""English text that every machine has: the documentation inside the running Python installation.

The language reference topics (`pydoc_data`) and the docstrings of the standard library, found by parsing the
source, never by importing it. Nothing of it is copied into this package. Which split a text belongs to is a
property of its own hash. Another Python version holds other texts, so a record names the version.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from twinrun.tasks.arithmetic import HELDOUT_ONE_IN, Split

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
)
MIN_CHARS = 80  # shorter docstrings are mostly "Return x."


@dataclass(frozen=True, slots=True)
class Text:
    """One documentation text.

    Attributes:
        name: ``topic/<name>`` or ``<file>:<line>`` relative to the standard library folder.
        text: the cleaned text, without trailing blanks.
        split: ``train`` or ``heldout``.
    """

    name: str
    text: str
    split: Split


def python_docs(split: Split | None = None) -> list[str]:
    """The documentation texts of this Python installation, deduplicated, in a fixed order.

    Args:
        split: only the texts of this split; None gives both.

    Returns:
        Texts of at least 80 characters, about two million characters together under Python 3.11.

    Cost: a few seconds for the first call of a process (every standard library file is parsed), then nothing.
    """
    return [text.text for text in documents() if split in (None, text.split)]


@cache
def language_reference() -> str:
    """The language reference topics as one text of about half a million characters; ready in milliseconds."""
    return "\n\n".join(text.strip() for _, text in _topics())


@cache
def documents() -> tuple[Text, ...]:
    """The same texts with their names and splits."""
    seen: set[str] = set()
    found = []
    for name, raw in [*_topics(), *_docstrings(Path(sysconfig.get_paths()["stdlib"]))]:
        text = "\n".join(line.rstrip() for line in inspect.cleandoc(raw).splitlines())
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if len(text) < MIN_CHARS or digest in seen or not _is_utf8(text):
            continue
        seen.add(digest)
        split: Split = "heldout" if int(digest[:8], 16) % HELDOUT_ONE_IN == 0 else "train"
        found.append(Text(name, text, split))
    return tuple(found)


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics  # ~0.5 MB; only wanted by callers of this function

    for name in sorted(topics):
        yield f"topic/{name}", topics[name]


def _docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts):
            continue
        tree = _parse(path)
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text:
                    line = getattr(node, "lineno", 1)
                    yield f"{path.relative_to(folder).as_posix()}:{line}", text


def _parse(path: Path) -> ast.Module | None:
    """The syntax tree of a file, or None: the standard library holds files that are wrong on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return None


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
