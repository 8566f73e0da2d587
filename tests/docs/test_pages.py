"""Docs are tests: Python blocks of a page run as one program, twinrun commands run, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ALL_TEXT = [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


WITH_PYTHON = [p for p in PAGES if blocks(p.read_text(), "python")]
COMMANDS = [
    (page.name, line)
    for page in PAGES
    for block in blocks(page.read_text(), "bash")
    for line in block.splitlines()
    if line.startswith("twinrun")
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda p: p.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks(page.read_text(), "python")))
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True, timeout=590
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_the_commands_of_a_page_run(page: str, command: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]


def test_there_is_something_to_run() -> None:
    assert len(WITH_PYTHON) >= 5
    assert COMMANDS


@pytest.mark.parametrize("page", ALL_TEXT, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_listed() -> None:
    """A page in the README of its own folder, a folder in the one of `docs`."""
    top = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        index = (page.parent / "README.md").read_text()
        if page.name != "README.md":
            assert f"({page.name})" in index, page
        elif page.parent.name != "docs":
            assert f"({page.parent.name}/README.md)" in top, page


def test_flags_in_the_docs_exist() -> None:
    """Every --flag that a page or the README mentions belongs to some command."""
    from twinrun.cli.main import COMMANDS as VERBS

    known = ""
    for verb in VERBS:
        for path in (ROOT / "src" / "twinrun" / "cli").glob(f"{verb}*.py"):
            known += path.read_text()
    known += (ROOT / "src" / "twinrun" / "cli" / "common.py").read_text()
    for page in [*PAGES, ROOT / "README.md"]:
        for line in page.read_text().splitlines():
            if line.startswith("twinrun "):
                for flag in re.findall(r"--[a-z0-9-]+", line):
                    name = flag.removeprefix("--").replace("-", "_")
                    assert flag in known or name in known, f"{page.name}: {flag}"


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("faults.md", "faults_page"),
        ("token-skip.md", "token_skip_page"),
        ("diffusion.md", "diffusion_page"),
        ("contrast-training.md", "contrast_training_page"),
        ("decode.md", "decode_page"),
        ("prune-training.md", "prune_training_page"),
        ("prune.md", "prune_page"),
    ],
)
def test_a_page_of_numbers_is_drawn_from_its_record(
    page: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / page).read_text() == script.page(), f"run python scripts/{name}.py"
