"""`twinrun contrast sample`: what it prints and returns, bad input in one line; killed and resumed at random."""

from __future__ import annotations

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.command import last_record, run
from twinrun.contrast.settings import SampleSettings
from twinrun.contrast.store import SampleStore

PAIR = ["contrast", "sample", "--expert", "builtin:expert", "--amateur", "builtin:amateur"]
SMALL = ["--data", "builtin:arithmetic", "--limit", "4", "-n", "12", "--batch-size", "2"]
FILES = ("steps.jsonl", "trajectories.jsonl", "steps.parquet", "trajectories.parquet")


def test_help_names_every_setting(capsys):
    code, out, _ = run(capsys, "contrast", "sample", "--help")
    assert code == 0
    for name in SampleSettings().to_json():
        assert "--" + name.replace("_", "-") in out
    assert "twinrun[ray]" in out


def test_the_defaults_are_those_of_the_settings():
    import typer

    from twinrun.cli import contrast_sample

    app = typer.Typer()
    contrast_sample.register(app)
    given = inspect.signature(app.registered_commands[0].callback).parameters
    assert {k: given[k].default for k in SampleSettings().to_json()} == SampleSettings().to_json()


def test_samples_lie_in_the_folder_and_the_record_counts_them(capsys, tmp_path):
    public = tmp_path / "public.jsonl"
    code, out, err = run(
        capsys, *PAIR, *SMALL, "--out", str(tmp_path / "s"), "--json", "--public-jsonl", str(public)
    )
    found = last_record(out)
    assert code == 0
    assert (found["problems"], found["resumed"], found["steps"]) == (4, 0, 48)
    assert found["unfinished"] == 4
    assert "4 problems; " in err
    assert "4 answers cut off by --max-new-tokens" in err
    store = SampleStore(tmp_path / "s")
    assert len(list(store.steps())) == found["kept"]
    assert all((tmp_path / "s" / name).stat().st_size for name in FILES)
    assert len(public.read_text().splitlines()) == found["kept"]
    code, out, _ = run(capsys, *PAIR, *SMALL, "--out", str(tmp_path / "s"))
    assert code == 0
    assert "4 of them found done" in out


def test_bad_requests_are_one_line_and_exit_2(capsys, tmp_path):
    out = str(tmp_path / "s")
    assert run(capsys, *PAIR, *SMALL, "--out", out)[0] == 0
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "x"}\nnot json\n')
    cases = {
        "settings.beta = 0.4, this run has 0.6": [*PAIR, *SMALL, "--out", out, "--beta", "0.6"],
        "expert.digest": [*PAIR, *SMALL, "--expert", "builtin:amateur", "--out", out],
        "data.problems = 4, this run has 5": [*PAIR, *SMALL, "--limit", "5", "--out", out],
        "bad.jsonl line 2 is not valid JSON": [*PAIR, "--data", str(bad), "--out", str(tmp_path / "t")],
        "no engine called 'dask'": [*PAIR, *SMALL, "--out", out, "--engine", "dask"],
        "alpha must be in": [*PAIR, *SMALL, "--out", out, "--alpha", "2"],
    }  # fmt: skip
    for words, argv in cases.items():
        code, stdout, err = run(capsys, *argv)
        assert code == 2, words
        assert words in err
        assert len([line for line in err.strip().splitlines() if line.startswith("twinrun:")]) == 1
        assert "Traceback" not in err + stdout


def test_bad_lines_are_passed_over_and_counted_if_asked_for(capsys, tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text('{"question": "x"}\nnot json\n' + json.dumps({"question": "long " * 3000}) + "\n")
    code, out, err = run(
        capsys, *PAIR, "--data", str(data), "--out", str(tmp_path / "t"), "-n", "4", "--skip-bad", "--json"
    )
    assert code == 0
    assert last_record(out)["problems"] == 1
    assert "2 bad input passed over" in err
    assert "line 2 is not valid JSON" in err
    assert "line 3: prompt of" in err


def killed_runs(folder: Path, rng: random.Random, argv: list[str]) -> int:
    """Run the command again and again, killed at a random instant each time, until it ends by itself."""
    kills = 0
    while True:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before, until = _parts(folder), rng.uniform(0.0, 0.4)
        while process.poll() is None and _parts(folder) == before and kills < 4:
            time.sleep(0.01)
        if kills < 4:  # a batch has just been committed: end it during the next, or between the two
            time.sleep(until)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        _, err = process.communicate()
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, err.decode()[-2000:]


def _parts(folder: Path) -> int:
    return len(list((folder / "parts").glob("*.parquet"))) if (folder / "parts").is_dir() else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_instants_and_resumed_it_equals_a_run_that_was_not(tmp_path):
    small = ["--data", "builtin:arithmetic", "--limit", "24", "-n", "24", "--batch-size", "2"]
    argv = [sys.executable, "-m", "twinrun", *PAIR, *small]
    subprocess.run([*argv, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    kills = killed_runs(tmp_path / "killed", random.Random(7), [*argv, "--out", str(tmp_path / "killed")])
    assert kills >= 2
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    names = [t.prompt_id for t in SampleStore(tmp_path / "killed").trajectories()]
    assert len(names) == len(set(names)) == 24
