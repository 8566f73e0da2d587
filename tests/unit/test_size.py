"""Files and functions stay small enough to read. Exceptions are named, with a reason, in pyproject.toml."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("src/twinrun", "scripts", "benchmarks")
MAX_SOURCE_LINES = 500
MAX_TEST_LINES = 800
MAX_FUNCTION_LINES = 80
MAX_PUBLIC_PARAMETERS = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Finding(NamedTuple):
    """Something over its limit: `key` is what pyproject.toml may name, `text` is what a reader needs."""

    key: str
    text: str


def _count_parameters(function: Function, is_method: bool) -> int:
    args = function.args
    named = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    starred = [a for a in (args.vararg, args.kwarg) if a is not None]
    bound = is_method and named[:1] in (["self"], ["cls"])
    return len(named) + len(starred) - bound


class Named(NamedTuple):
    """A function with its qualified name; what is nested in a function is not public."""

    name: str
    node: Function
    is_public: bool


def _functions(node: ast.AST, scope: tuple[str, ...] = (), public: bool = True) -> Iterator[Named]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef):
            yield from _functions(child, scope, public)
            continue
        name = (*scope, child.name)
        is_public = public and (not child.name.startswith("_") or child.name in {"__init__", "__call__"})
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, name, is_public)
        else:
            yield Named(".".join(name), child, is_public)
            yield from _functions(child, name, public=False)


def findings_in_source_file(path: Path, root: Path) -> list[Finding]:
    """What in one source file is over a limit."""
    text, key = path.read_text("utf-8"), path.relative_to(root).as_posix()
    found = []
    lines = len(text.splitlines())
    if lines > MAX_SOURCE_LINES:
        found.append(Finding(key, f"{key} has {lines} lines, limit {MAX_SOURCE_LINES}"))
    for name, function, is_public in _functions(ast.parse(text, key)):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        parameters = _count_parameters(function, is_method="." in name)
        if length > MAX_FUNCTION_LINES:
            limit = f"has {length} lines, limit {MAX_FUNCTION_LINES}"
            found.append(Finding(f"{key}::{name}", f"{key}:{function.lineno}: {name} {limit}"))
        if is_public and parameters > MAX_PUBLIC_PARAMETERS:
            limit = f"takes {parameters} parameters, limit {MAX_PUBLIC_PARAMETERS}: use a config"
            found.append(Finding(f"{key}::{name}", f"{key}:{function.lineno}: {name} {limit}"))
    return found


def findings_in_test_file(path: Path, root: Path) -> list[Finding]:
    """What in one test file is over a limit."""
    key = path.relative_to(root).as_posix()
    lines = len(path.read_text("utf-8").splitlines())
    too_long = lines > MAX_TEST_LINES
    return [Finding(key, f"{key} has {lines} lines, limit {MAX_TEST_LINES}")] if too_long else []


def findings(root: Path) -> list[Finding]:
    """Everything over a limit below `root`."""
    source = [path for folder in SOURCE_FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    tests = sorted((root / "tests").rglob("*.py"))
    found = [entry for path in source for entry in findings_in_source_file(path, root)]
    return found + [entry for path in tests for entry in findings_in_test_file(path, root)]


def allowed_oversize() -> dict[str, str]:
    """The exceptions of pyproject.toml: path or path::function -> reason."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["twinrun"]["oversize"]


def test_nothing_is_over_its_limit():
    assert list((ROOT / "src" / "twinrun").rglob("*.py"))
    assert [entry.text for entry in findings(ROOT) if entry.key not in allowed_oversize()] == []


def test_every_exception_is_needed_and_has_a_reason():
    allowed = allowed_oversize()
    assert set(allowed) - {entry.key for entry in findings(ROOT)} == set()
    assert [key for key, reason in allowed.items() if len(reason.split()) < 3] == []


def _function(lines: int, name: str = "f") -> str:
    return f"def {name}():\n" + "    x = 1\n" * (lines - 1)


def _parameters(count: int, name: str = "f", first: str = "") -> str:
    return f"def {name}({first}{', '.join(f'a{i}' for i in range(count))}): ..."


def _method(text: str, name: str = "C") -> str:
    return f"class {name}:\n    {text}"


CASES = {
    "file at the limit": ("src/twinrun/a.py", "x = 1\n" * 500, 0),
    "file": ("src/twinrun/a.py", "x = 1\n" * 501, 1),
    "script": ("scripts/a.py", "x = 1\n" * 501, 1),
    "test file at the limit": ("tests/unit/test_a.py", "x = 1\n" * 800, 0),
    "test file": ("tests/unit/test_a.py", "x = 1\n" * 801, 1),
    "function at the limit": ("src/twinrun/a.py", _function(80), 0),
    "function": ("src/twinrun/a.py", _function(81), 1),
    "private function": ("src/twinrun/a.py", _function(81, "_f"), 1),
    "function in a branch": ("src/twinrun/a.py", "if 1:\n " + _function(81).replace("\n", "\n "), 1),
    "parameters at the limit": ("src/twinrun/a.py", _parameters(10), 0),
    "parameters": ("src/twinrun/a.py", _parameters(11), 1),
    "keyword parameters": ("src/twinrun/a.py", _parameters(10, first="*rest, "), 1),
    "private parameters": ("src/twinrun/a.py", _parameters(11, "_f"), 0),
    "method at the limit": ("src/twinrun/a.py", _method(_parameters(10, first="self, ")), 0),
    "constructor": ("src/twinrun/a.py", _method(_parameters(11, "__init__", first="self, ")), 1),
    "private class": ("src/twinrun/a.py", _method(_parameters(11, first="self, "), "_C"), 0),
}


@pytest.mark.parametrize(("name", "text", "expected"), CASES.values(), ids=CASES)
def test_limits_refuse_what_is_over_them_and_nothing_else(tmp_path, name, text, expected):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text, "utf-8")
    assert len(findings(tmp_path)) == expected, findings(tmp_path)
