"""Imports inside twinrun go one way. The source is parsed, never imported, so this costs nothing."""

import ast
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "twinrun"

FOUNDATION = {"errors", "numerics", "records"}
TECHNIQUES = {"tasks", "runners", "diffusion", "prune"}
STUDIES = {"bench", "contrast", "quality"}
BELOW_STUDIES = FOUNDATION | {"models", "verify", "trace"} | TECHNIQUES
# What each part of the house may import, itself apart. A new part is added here, on purpose.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "numerics": {"errors"},
    "records": {"errors", "numerics"},
    "models": FOUNDATION,
    "verify": FOUNDATION,
    "trace": FOUNDATION | {"verify"},
    "report": FOUNDATION,
    "plan": FOUNDATION | {"models", "runners"},
    **{part: FOUNDATION | {"models"} | TECHNIQUES for part in TECHNIQUES},
    **dict.fromkeys(STUDIES, BELOW_STUDIES | STUDIES),
    "faults": FOUNDATION | {"models", "runners", "diffusion", "prune", "verify", "trace", "contrast"},
    "testing": BELOW_STUDIES,
    "cli": BELOW_STUDIES | STUDIES | {"faults", "plan", "report"},
    "__main__": {"cli"},
}


class Import(NamedTuple):
    """One imported dotted name, where it stands, and whether importing the file executes it."""

    file: Path
    line: int
    name: str
    at_import_time: bool


def _resolve_relative(node: ast.ImportFrom, package: list[str]) -> str:
    if not node.level:
        return node.module or ""
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _imported_names(node: ast.AST, package: list[str]) -> list[str]:
    """Dotted names that `node` imports; `from a import b` gives `a.b`."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(names=names):
            base = _resolve_relative(node, package)
            return [f"{base}.{alias.name}" for alias in names]
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            by_name = ast.unparse(function).split(".")[-1] in {"import_module", "__import__"}
            return [name] if by_name and not name.startswith(".") else []
        case ast.Attribute(value=ast.Name(id="transformers"), attr=name):
            return [f"transformers.{name}"]
    return []


def _is_lazy(node: ast.AST, child: ast.AST) -> bool:
    """Whether importing the file leaves `child` of `node` unexecuted: a function body, a block for types."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _walk(node: ast.AST, at_import_time: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    yield node, at_import_time
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, at_import_time and not _is_lazy(node, child))


def imports_under(src: Path) -> Iterator[Import]:
    """Every import statement below the package folder `src`, late and type-only ones too."""
    for file in sorted(src.rglob("*.py")):
        package = [src.name, *file.relative_to(src).parent.parts]
        for node, at_import_time in _walk(ast.parse(file.read_text("utf-8"), str(file))):
            for name in _imported_names(node, package):
                yield Import(file, getattr(node, "lineno", 0), name, at_import_time)


def part_of(file: Path, src: Path) -> str:
    """The part of the house that holds `file`: `models/layout.py` -> `models`, `errors.py` -> `errors`."""
    return file.relative_to(src).parts[0].removesuffix(".py")


def _second_name(entry: Import) -> str:
    return entry.name.partition(".")[2].partition(".")[0]


def _own_import_problem(part: str, entry: Import, own_parts: set[str]) -> str | None:
    target = _second_name(entry)
    if part == "__init__":
        late = not entry.at_import_time or target == "errors"
        return None if late else f"__init__ imports {entry.name} at import time; do it inside a function"
    if target == part:
        return None
    if target not in own_parts:
        return None if target.startswith("__") else f"{part} imports {entry.name} from the top of the package"
    if part not in ALLOWED:
        return f"{part} is not in ALLOWED: say there what it may import"
    return None if target in ALLOWED[part] else f"{part} must not import {target}"


def _transformers_submodules() -> set[str]:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return {path.stem for place in spec.submodule_search_locations for path in Path(place).iterdir()}


def _transformers_problem(part: str, entry: Import, submodules: set[str]) -> str | None:
    if part == "models":
        return None
    if part not in {"runners", "contrast"}:  # contrast trains with the Trainer
        return f"{part} must not import transformers: go through twinrun.models"
    head = _second_name(entry)
    if head.startswith("_") or head == "*" or head in submodules:
        return f"{part} may use the public top level of transformers only, not {entry.name}"
    return None


def problems(src: Path) -> list[str]:
    """Each import below `src` that goes the wrong way, as `file:line: rule`."""
    submodules = _transformers_submodules()
    own_parts = {part_of(file, src) for file in src.rglob("*.py")} - {"__init__"}
    found = []
    for entry in imports_under(src):
        part, root = part_of(entry.file, src), entry.name.split(".")[0]
        problem = None
        if root == "twinrun":
            problem = _own_import_problem(part, entry, own_parts)
        elif root == "transformers":
            problem = _transformers_problem(part, entry, submodules)
        if problem:
            found.append(f"{entry.file.relative_to(src)}:{entry.line}: {problem}")
    return found


def cycles(src: Path) -> list[str]:
    """Pairs of parts that import each other at import time, whatever the path between them."""
    edges: dict[str, set[str]] = {}
    for entry in imports_under(src):
        names = entry.name.split(".")
        if names[0] == "twinrun" and len(names) > 1 and entry.at_import_time:
            edges.setdefault(part_of(entry.file, src), set()).add(names[1])
    reach = {part: _reachable(part, edges) for part in edges}
    return sorted(f"{a} <-> {b}" for a in reach for b in reach if a < b and b in reach[a] and a in reach[b])


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        for target in edges.get(queue.pop(), set()) - seen:
            seen.add(target)
            queue.append(target)
    return seen


def undeclared(src: Path, pyproject: Path) -> list[str]:
    """Packages imported when a module of `src` is imported, but not among the runtime dependencies."""
    dependencies = tomllib.loads(pyproject.read_text("utf-8"))["project"]["dependencies"]
    declared = {re.split(r"[^\w-]", name)[0].replace("-", "_") for name in dependencies}
    known = declared | set(sys.stdlib_module_names) | {"twinrun"}
    return [
        f"{entry.file.relative_to(src)}:{entry.line}: {entry.name}"
        for entry in imports_under(src)
        if entry.at_import_time and entry.name.split(".")[0] not in known
    ]


def test_imports_go_one_way():
    assert SRC.is_dir()
    assert problems(SRC) == []


def test_parts_do_not_import_each_other_in_a_circle():
    assert cycles(SRC) == []


def test_modules_import_only_declared_dependencies():
    assert undeclared(SRC, ROOT / "pyproject.toml") == []


FORBIDDEN = {
    "upwards": ("models/load.py", "from twinrun.runners import KVCache"),
    "relative": ("models/load.py", "from ..runners import KVCache"),
    "from the package": ("models/load.py", "from twinrun import runners"),
    "plain import": ("errors.py", "import twinrun.numerics.kl"),
    "inside a function": ("verify/verdict.py", "def f():\n    from twinrun.runners import KVCache"),
    "for types only": ("verify/verdict.py", "if TYPE_CHECKING:\n    from twinrun.models import Model"),
    "by name": ("trace/write.py", "importlib.import_module('twinrun.models')"),
    "verify from a runner": ("runners/kv.py", "from twinrun.verify import verdict"),
    "report from bench": ("bench/time.py", "from twinrun.report import table"),
    "cli from a study": ("contrast/train.py", "from twinrun.cli import main"),
    "public surface from inside": ("bench/time.py", "from twinrun import verify_all"),
    "unknown part": ("extras/x.py", "from twinrun.errors import TwinrunError"),
    "eager package": ("__init__.py", "from twinrun.models import load"),
    "transformers outside": ("bench/time.py", "import transformers"),
    "transformers late": (
        "verify/verdict.py",
        "def f():\n    from transformers import AutoConfig",
    ),
    "transformers submodule": ("runners/kv.py", "from transformers.cache_utils import DynamicCache"),
    "transformers submodule by name": ("runners/kv.py", "from transformers import cache_utils"),
    "transformers submodule used": (
        "runners/kv.py",
        "import transformers\nx = transformers.models.llama",
    ),
    "transformers private": ("runners/kv.py", "from transformers import _LazyModule"),
}
PERMITTED = {
    "downwards": ("runners/kv.py", "from twinrun.models import load"),
    "relative sibling": ("runners/kv.py", "from . import plain\nfrom .plain import Recompute"),
    "between techniques": ("prune/pruned.py", "from twinrun.runners import Recompute"),
    "lazy package": (
        "__init__.py",
        "def __getattr__(name):\n    from twinrun.models import load\n    return load",
    ),
    "typed package": ("__init__.py", "if TYPE_CHECKING:\n    from twinrun.models import load"),
    "faults": ("faults/kv.py", "from twinrun import runners, verify"),
    "cli": ("cli/show.py", "from twinrun.report import table\nfrom twinrun import __version__"),
    "transformers inside": (
        "models/layout.py",
        "from transformers.models.llama import modeling_llama",
    ),
    "transformers public in runners": ("runners/kv.py", "from transformers import DynamicCache"),
}


def plant(tmp_path: Path, name: str, text: str) -> Path:
    """A small package named twinrun with every part of the house, and `text` in the file `name`."""
    src = tmp_path / "twinrun"
    for part in ALLOWED:
        (src / part).mkdir(parents=True)
        (src / part / "__init__.py").touch()
    (src / name).parent.mkdir(exist_ok=True)
    (src / name).write_text(text + "\n", "utf-8")
    return src


@pytest.mark.parametrize(("name", "text"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_import_is_refused(tmp_path, name, text):
    assert len(problems(plant(tmp_path, name, text))) == 1


@pytest.mark.parametrize(("name", "text"), PERMITTED.values(), ids=PERMITTED)
def test_a_permitted_import_is_accepted(tmp_path, name, text):
    assert problems(plant(tmp_path, name, text)) == []


def test_a_circle_is_refused(tmp_path):
    src = plant(tmp_path, "prune/a.py", "from twinrun.runners import b")
    assert cycles(src) == []
    (src / "runners" / "b.py").write_text("from twinrun.prune import a\n", "utf-8")
    assert cycles(src) == ["prune <-> runners"]


def test_an_undeclared_package_is_refused_unless_it_is_for_types_only(tmp_path):
    text = "from typing import TYPE_CHECKING\nimport torch\nif TYPE_CHECKING:\n    import jaxtyping\n"
    src = plant(tmp_path, "numerics/kl.py", text)
    assert undeclared(src, ROOT / "pyproject.toml") == []
    (src / "numerics" / "kl.py").write_text("import jaxtyping\n", "utf-8")
    assert undeclared(src, ROOT / "pyproject.toml") == ["numerics/kl.py:1: jaxtyping"]
