"""The wheel, installed outside the checkout, has everything that the commands and `load` need."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_INPUTS = ("pyproject.toml", "README.md", "LICENSE")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Installed(NamedTuple):
    """One installed wheel: its file, its environment, and a folder to work in."""

    wheel: Path
    site_packages: Path
    bin: Path
    work: Path


def run(argv: list[str | Path], folder: Path, *, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run without the checkout on any path, and without the hub."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == expect, f"{argv}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    return done


def build_wheel(folder: Path) -> Path:
    """Build from a copy, so that an old build/ cannot add files and the checkout stays clean."""
    tree, dist = folder / "tree", folder / "dist"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in BUILD_INPUTS:
        shutil.copy(ROOT / name, tree / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, tree], folder)
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--no-deps", "--no-index", wheel], folder)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # The dependencies come from the environment of the tests. A path in a .pth file is searched after the new
    # site-packages, and the .pth files inside it (an editable twinrun) are not followed.
    places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "dependencies.pth").write_text("\n".join(places) + "\n", "utf-8")
    work = folder / "work"
    work.mkdir()
    return Installed(wheel, site_packages, python.parent, work)


def test_wheel_holds_every_module_and_data_file_and_nothing_else(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    package = ROOT / "src" / "twinrun"
    wanted = {path for path in package.rglob("*.py") if "__pycache__" not in path.parts}
    for folder in ("models/builtin", "report/templates"):
        data = {path for path in (package / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
        assert data, f"{folder} is empty"
        wanted |= data
    wanted |= {package / "py.typed", package / "tasks" / "longbench_prompts.json"}
    assert names == {path.relative_to(package.parent).as_posix() for path in wanted}
    assert licences


def test_package_is_imported_from_the_wheel(installed):
    code = "import twinrun as tr; m = tr.load('builtin:expert'); print(tr.__file__)"
    done = run([installed.bin / "python", "-c", code], installed.work)
    imported = Path(done.stdout.splitlines()[-1])
    assert imported.is_relative_to(installed.site_packages)
    assert not imported.is_relative_to(ROOT)


def test_help_runs(installed):
    assert "verify" in run([installed.bin / "twinrun", "--help"], installed.work).stdout


def test_models_are_listed_as_json(installed):
    done = run([installed.bin / "twinrun", "models", "--json"], installed.work)
    record = json.loads(done.stdout.splitlines()[-1])
    assert "expert" in json.dumps(record)


def test_a_bad_request_is_seen_as_such(installed):
    run([installed.bin / "twinrun", "no-such-command"], installed.work, expect=2)
