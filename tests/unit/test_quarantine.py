"""Every skip or expected failure in tests/ has a row in QUARANTINE.md, and every row its skip."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PYTEST_SKIPS = {"skip", "skipif", "xfail", "importorskip"}
UNITTEST_SKIPS = {"skipTest", "skipIf", "skipUnless", "SkipTest", "expectedFailure"}
SKIPPERS = PYTEST_SKIPS | UNITTEST_SKIPS
IGNORERS = {"collect_ignore", "collect_ignore_glob", "pytest_ignore_collect"}
HEADER = ["test", "reason", "un-skip when"]


def _is_skip(node: ast.AST, from_pytest: set[str]) -> bool:
    match node:
        case ast.Attribute(attr=name) if name in SKIPPERS:
            root = ast.unparse(node).split(".")[0]
            return root in {"pytest", "unittest"} | from_pytest or (root, name) == ("self", "skipTest")
        case ast.Name(id=name):
            return name in IGNORERS or (name in SKIPPERS and name in from_pytest)
        case ast.FunctionDef(name=name):
            return name in IGNORERS
    return False


def _names_from_pytest(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"pytest", "unittest"}:
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname for a in node.names if a.name in {"pytest", "unittest"} and a.asname}
    return names


def skips_in(tests: Path) -> set[str]:
    """Where the code skips: `tests/unit/test_x.py::test_name`, or the path alone at module level."""
    found: set[str] = set()
    for path in sorted(tests.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"), str(path))
        from_pytest = _names_from_pytest(tree)
        stack: list[tuple[ast.AST, tuple[str, ...]]] = [(tree, ())]
        while stack:
            node, scope = stack.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                scope = (*scope, node.name)
            if _is_skip(node, from_pytest):
                found.add("::".join([path.relative_to(tests.parent).as_posix(), *scope]))
            stack += [(child, scope) for child in ast.iter_child_nodes(node)]
    return found


def rows_of(text: str) -> list[list[str]]:
    """The cells of each table row, header and ruler left out."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert rows[:1] == [HEADER], "the table of QUARANTINE.md starts with its header"
    return [[cells[0].strip("`"), *cells[1:]] for cells in rows[2:]]


def compare(tests: Path) -> list[str]:
    """What is wrong between the code and the table, in both directions."""
    rows, skips = rows_of((tests / "QUARANTINE.md").read_text("utf-8")), skips_in(tests)
    names = [row[0] for row in rows]
    problems = [f"{name}: skips without a row in QUARANTINE.md" for name in sorted(skips - set(names))]
    problems += [f"{name}: has a row, but nothing skips there" for name in sorted(set(names) - skips)]
    problems += [f"{name}: has two rows" for name in sorted({n for n in names if names.count(n) > 1})]
    return problems + [f"{row[0]}: needs three cells" for row in rows if len(row) != 3 or not all(row)]


def test_quarantine_agrees_with_the_code():
    assert compare(TESTS) == []


SKIPPING = {
    "call": ("import pytest\ndef test_a():\n    pytest.skip('x')", "::test_a"),
    "marker": ("import pytest\n@pytest.mark.skipif(True, reason='x')\ndef test_a(): ...", "::test_a"),
    "xfail in a parameter": (
        "import pytest as p\n@p.mark.parametrize('a', [p.param(1, marks=p.mark.xfail)])\ndef test_a(a): ...",
        "::test_a",
    ),
    "class": ("import pytest\n@pytest.mark.skip\nclass TestA:\n    def test_a(self): ...", "::TestA"),
    "method": (
        "import pytest\nclass TestA:\n    def test_a(self):\n        pytest.xfail()",
        "::TestA::test_a",
    ),
    "module": ("import pytest\npytestmark = pytest.mark.skip", ""),
    "missing import": ("import pytest\nnp = pytest.importorskip('numpy')", ""),
    "from import": ("from pytest import mark\n@mark.skip\ndef test_a(): ...", "::test_a"),
    "alias": ("import pytest as pt\n@pt.mark.skip\ndef test_a(): ...", "::test_a"),
    "folder": ("collect_ignore_glob = ['*.py']", ""),
}


def _table(*rows: str) -> str:
    return "\n".join(["| test | reason | un-skip when |", "|---|---|---|", *rows])


@pytest.mark.parametrize(("code", "where"), SKIPPING.values(), ids=SKIPPING)
def test_a_skip_needs_its_row(tmp_path, code, where):
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_x.py").write_text(code, "utf-8")
    (tests / "QUARANTINE.md").write_text(_table(), "utf-8")
    key = f"tests/test_x.py{where}"
    assert compare(tests) == [f"{key}: skips without a row in QUARANTINE.md"]
    (tests / "QUARANTINE.md").write_text(_table(f"| `{key}` | upstream bug | it is fixed |"), "utf-8")
    assert compare(tests) == []


@pytest.mark.parametrize("row", ["| `tests/test_x.py::test_a` | r | w |"])
def test_a_row_needs_its_skip(tmp_path, row):
    (tmp_path / "test_x.py").write_text("def test_a():\n    file.skip(3)\n    slow = 'skip'\n", "utf-8")
    (tmp_path / "QUARANTINE.md").write_text(_table(row), "utf-8")
    assert compare(tmp_path) == ["tests/test_x.py::test_a: has a row, but nothing skips there"]


def test_a_row_without_a_reason_is_refused(tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_x.py").write_text("import pytest\npytestmark = pytest.mark.skip", "utf-8")
    (tests / "QUARANTINE.md").write_text(_table("| `tests/test_x.py` |  | never |"), "utf-8")
    assert compare(tests) == ["tests/test_x.py: needs three cells"]
