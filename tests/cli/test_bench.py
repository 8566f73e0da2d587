"""`twinrun bench`: what is typed, what is printed, what is written, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.command import last_record
from tests.support.sweeps import cheap_ceilings
from tests.support.tiny import tiny_folder
from twinrun.cli.lists import spread_out
from twinrun.cli.main import main

QUICK = ["--new-tokens", "3", "--repeats", "2"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "other", seed=1))


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_ceilings(monkeypatch)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["bench", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("m --lengths 1024 4096 --json", "m --lengths 1024 --lengths 4096 --json"),
        ("--lengths 8,16 32 m", "--lengths 8 --lengths 16 --lengths 32 m"),
        ("m --lengths 8 --lengths 16", "m --lengths 8 --lengths 16"),
        ("m --new-tokens 16 --lengths 8", "m --new-tokens 16 --lengths 8"),
        ("m --lengths -4", "m --lengths -4"),
        ("m --lengths", "m --lengths"),
        ("m --lengths --json", "m --lengths --json"),
        ("m --lengths=8 16", "m --lengths=8 16"),
    ],
)
def test_lengths_are_a_list(typed: str, read: str) -> None:
    assert spread_out(typed.split(), "--lengths") == read.split()


def test_the_form_of_the_issue_works_and_everything_is_written(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [folder, "--runner", "recompute", "--runner", "kv-cache", "--lengths", "5", "9", "600", *QUICK]
    code, text, err = run(capsys, *argv, "--out", str(out), "--json")
    assert code == 0, err
    record = last_record(text)
    assert len(text.strip().splitlines()) == 1
    assert [row["length"] for row in record["rows"]] == [5, 9, 600]
    assert [c["runner"] for c in record["rows"][0]["cells"]] == ["recompute", "kv-cache:dynamic"]
    assert [c["status"] for c in record["rows"][2]["cells"]] == ["too long", "too long"]
    for words in (
        "times as fast",
        "noise",
        "distance from the ceiling",
        "ceilings measured in this run",
        "too long",
    ):
        assert words in err
    assert json.loads((out / "bench.json").read_text()) == record
    assert [json.loads(x)["length"] for x in (out / "rows.jsonl").read_text().splitlines()] == [5, 9, 600]
    assert "| 5 | kv-cache:dynamic |" in (out / "bench.md").read_text()
    assert (out / "curves.png").read_bytes().startswith(PNG)
    code, _, err = run(capsys, *argv, "--out", str(out))
    assert code == 2
    assert "already holds a sweep; add --resume" in err
    assert run(capsys, *argv, "--out", str(out), "--resume")[0] == 0
    code, _, err = run(capsys, *argv[:-1], "3", "--out", str(out), "--resume")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "repeats is 2 there and 3 here" in err


def test_a_different_second_model_ends_with_1(
    capsys: pytest.CaptureFixture[str], folder: str, other: str
) -> None:
    argv = [folder, "--model-b", other, "-r", "recompute", "-r", "kv-cache@b", "--lengths", "6", *QUICK]
    code, out, _ = run(capsys, *argv)
    assert code == 1
    assert "≠ different" in out
    assert "kv-cache:dynamic@b" in out
    code, out, _ = run(capsys, *argv, "--budget-kl", "50", "--json")
    assert code == 0
    assert last_record(out)["rows"][0]["cells"][1]["verdict"]["verdict"] == "lossy"
    code, _, _ = run(capsys, *argv, "--budget-kl", "50", "--budget-top1", "1.0")
    assert code == 1


def test_threads_are_set_and_put_back(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    before = torch.get_num_threads()
    code, out, _ = run(
        capsys,
        folder,
        "-r",
        "kv-cache",
        "--lengths",
        "4",
        "--threads",
        "2",
        "--dtype",
        "bfloat16",
        *QUICK,
        "--json",
    )
    assert code == 0
    record = last_record(out)
    assert (record["request"]["threads"], record["request"]["dtype"]) == (2, "bfloat16")
    assert record["rows"][0]["ceilings"]["threads"] == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-r", "recompute", "-r", "kv-cash"], "Did you mean 'kv-cache"),
        (["--lengths", "0"], "lengths start at 1 token, got 0"),
        (["--lengths", "abc"], "--lengths"),
        (["--lengths", "8", "8"], "length 8 was given twice"),
        (["-r", "kv-cache", "-r", "kv-cache:dynamic"], "'kv-cache:dynamic' was given twice"),
        (["--new-tokens", "0"], "new_tokens must be at least 1, got 0"),
        (["--repeats", "0"], "repeats must be at least 1"),
        (["--lengths", "600", "700", *QUICK], "every length is too long: prompt of 600 tokens"),
        (["--prompts", "books"], "prompts must be one of"),
        (["--threads", "0"], "threads must be at least 1"),
        (["-r", "recompute", "-r", "kv-cache@b"], "needs a second model; give --model-b"),
        (["--model-b", "FOLDER"], "is used by no runner"),
        (["-r", "kv-cache@b", "--model-b", "FOLDER"], "the reference runs the first model"),
        (["--budget-top1", "3"], "budget top1"),
        (["--resume"], "--out DIR"),
        (["--out", "FILE", *QUICK], "cannot write"),
    ],
)
def test_bad_requests_end_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path, argv: list[str], message: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    code, out, err = run(
        capsys, folder, *[{"FOLDER": folder, "FILE": str(file / "x")}.get(a, a) for a in argv]
    )
    assert code == 2, err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_an_unknown_runner_is_refused_before_weights_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no runner named 'x'" in run(capsys, "no/such-model", "-r", "x")[2]


def test_every_runner_that_is_listed_can_be_timed_by_name(
    capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    sides = ["-r", "kv-cache:static", "-r", "kv-cache:static+captured", "-r", "kv-cache:static+packed"]
    code, out, _ = run(capsys, folder, *sides, "--lengths", "8", *QUICK, "--dtype", "float32", "--json")
    cells = last_record(out)["rows"][0]["cells"]
    assert [(cell["runner"], cell["status"]) for cell in cells] == [(name, "timed") for name in sides[1::2]]
    assert code == 0
    assert all(cell["prefill"]["flops"] > 0 for cell in cells)
    own, captured, packed = (cell["decode"]["flops_per_token"] for cell in cells)
    assert 0.98 * own < captured == packed <= own  # no operation is hidden; a graph reads filled slots only
    assert "lists all 23" in run(capsys, folder, "-r", "kv-cache:statik", "--lengths", "8")[2]


def test_help_imports_no_torch() -> None:
    code = "import sys; from twinrun.cli.main import main; main(['bench', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
