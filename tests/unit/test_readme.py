"""README.md is executed: what it tells a reader to type must work, in a folder that is not the checkout.

A ```bash block holds commands that run here, so it may need no download. Commands of one block run in order
in one empty folder; lines that start with something other than `twinrun` or `python` are left out.
The ```python blocks run one after the other as one program, the way a reader would paste them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BASH = ["bash", "-euo", "pipefail", "-c"]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)

# Each command is a process that imports torch, and a block may hold the demo: minutes, not seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def bash_blocks(text: str) -> list[list[str]]:
    """The runnable commands of each bash block, continuation lines joined."""
    blocks = []
    for language, body in BLOCK.findall(text):
        lines = body.replace("\\\n", " ").splitlines() if language == "bash" else []
        blocks.append([line.strip() for line in lines if re.match(r"\s*(twinrun|python)\s", line + " ")])
    return [block for block in blocks if block]


def python_program(text: str) -> str:
    """All python blocks at the line numbers they have in the README, so that a traceback points there."""
    program: list[str] = []
    for match in BLOCK.finditer(text):
        if match[1] == "python":
            program += [""] * (text.count("\n", 0, match.start(2)) - len(program))
            program += match[2].splitlines()
    return "\n".join(program)


TEXT = README.read_text("utf-8") if README.is_file() else ""
BLOCKS = bash_blocks(TEXT)


def run(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in `folder`, with the tested installation first on PATH, without the hub."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    return subprocess.run(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("commands", BLOCKS, ids=[block[0] for block in BLOCKS])
def test_every_readme_command_runs(commands, tmp_path):
    for command in commands:
        done = run([*BASH, command], tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def test_python_blocks_run(tmp_path):
    program = python_program(TEXT)
    assert program.strip(), "README.md shows no Python"
    (tmp_path / "README.py").write_text(program, "utf-8")
    done = run([sys.executable, "README.py"], tmp_path)
    assert done.returncode == 0, f"lines as in README.md\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def test_readme_has_commands():
    assert sum(map(len, BLOCKS)) >= 3  # the loop above is empty if the fence style changes


SAMPLE = """text
```bash
pip install twinrun
twinrun verify a \\
  b   # both lines are one command
false
```
```python
x = 1
```
```text
twinrun is not run here
```
```python
assert x == 2
```
"""


def test_blocks_are_found_and_a_failure_is_seen(tmp_path):
    assert bash_blocks(SAMPLE) == [["twinrun verify a    b   # both lines are one command"]]
    assert bash_blocks(SAMPLE.replace("```bash", "```text")) == []
    (tmp_path / "x.py").write_text(python_program(SAMPLE), "utf-8")
    done = run([sys.executable, "x.py"], tmp_path)
    assert done.returncode == 1
    assert f"line {SAMPLE.splitlines().index('assert x == 2') + 1}" in done.stderr
    failing = "python -c 'raise SystemExit(3)' | cat"
    assert run([*BASH, failing], tmp_path).returncode == 3
