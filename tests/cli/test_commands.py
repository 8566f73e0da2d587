"""Every command: help, success, bad requests with exit 2 and one line, JSON as the last line of stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.support.command import last_record, run
from tests.support.tiny import tiny_folder
from twinrun.cli.main import COMMANDS, app

QUICK = ["--max-tokens", "40"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny"))


def verbs(group: Any, *before: str) -> Iterator[tuple[str, ...]]:
    """Every command, those of groups (`prune`, `contrast`) under both names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, *before, name)
        else:
            yield (*before, name)


VERBS = list(verbs(typer.main.get_command(app)))


def test_every_file_of_a_command_has_its_verb() -> None:
    assert {verb[0].replace("-", "_") for verb in VERBS} == set(COMMANDS)
    assert ("contrast", "show") in VERBS


HELPFUL = [
    verb for verb in VERBS if verb != ("lm-eval",)
]  # its help is that of the harness, which is optional


@pytest.mark.parametrize("verb", [(), *HELPFUL], ids=" ".join)
def test_help(capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]) -> None:
    code, out, _ = run(capsys, *verb, "--help")
    assert code == 0
    assert "Usage" in out
    assert "--json" in out or not verb


@pytest.mark.parametrize("verb", ["verify", "memory"])
def test_help_imports_no_torch(verb: str) -> None:
    code = "import sys; from twinrun.cli.main import main; main([sys.argv[1], '-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, verb], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("command", ["env", "models", "runners"])
def test_lists(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = run(capsys, command)
    assert (code, err) == (0, "")
    code, out, err = run(capsys, command, "--json")
    assert code == 0
    assert len(out.strip().splitlines()) == 1
    assert last_record(out)
    assert err


def test_verify_passes(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    code, out, err = run(capsys, "verify", folder, "--probes", *QUICK, "-c", "single-pass", "--json")
    record = last_record(out)
    assert code == 0, err
    assert record["verdict"] in ("identical", "equivalent")
    wanted = {
        "verdict",
        "reason",
        "reference",
        "candidate",
        "model",
        "dtype",
        "positions",
        "ratio_max",
        "ratio_rms",
    }
    wanted |= {"kl_mean", "kl_max", "kl_p99", "top1_agreement", "flips", "seconds", "env"}
    assert wanted <= record.keys()
    assert "equivalent" in err or "identical" in err


def test_verify_of_another_checkpoint_fails_with_1(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path
) -> None:
    other = str(tiny_folder(tmp_path / "other", seed=1))
    code, out, _ = run(capsys, "verify", folder, "--candidate-model", other, "-p", "Tom has 3 apples.")
    assert code == 1
    assert "different" in out
    code, out, _ = run(
        capsys, "verify", folder, "--candidate-model", other, "-p", "Tom", "--max-kl", "50", "--json"
    )
    assert code == 0
    assert last_record(out)["verdict"] == "lossy"


def test_tokenizers_that_disagree_are_refused(
    capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path
) -> None:
    other = tiny_folder(tmp_path / "other")
    file = other / "tokenizer.json"
    core = json.loads(file.read_text())
    vocab = core["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(core))
    code, _, err = run(capsys, "verify", folder, "--candidate-model", str(other), "-p", "Tom")
    assert code == 2
    assert "disagree: id" in err


def test_verify_reads_files(capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("Tom has 3 apples.\nHe buys 4 more.\n")
    assert run(capsys, "verify", folder, "-f", str(text), *QUICK)[0] == 0
    rows = tmp_path / "b.jsonl"
    rows.write_text('{"question": "one two"}\n\n{"question": "three four five"}\n')
    code, out, _ = run(capsys, "verify", folder, "-f", str(rows), "--field", "question", "--json")
    assert code == 0
    assert len(last_record(out)["cases"]) == 2


def test_score_and_generate(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    code, out, _ = run(capsys, "score", folder, "-p", "Tom has 3 apples.", "--json")
    assert code == 0
    record = last_record(out)["texts"][0]
    assert record["logprobs"][0] is None
    assert record["total_logprob"] < 0
    argv = [
        "generate",
        folder,
        "-p",
        "Tom",
        "-p",
        "Ann has",
        "-n",
        "5",
        "--temperature",
        "0.9",
        "--seed",
        "3",
        "--json",
    ]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert [len(t) for t in last_record(out)["tokens"]] <= [5, 5]
    assert last_record(out) | {"seconds": 0, "steps": 0} == last_record(run(capsys, *argv)[1]) | {
        "seconds": 0,
        "steps": 0,
    }
    assert run(capsys, "generate", folder, "--chat", "-p", "Tom [bold]x[/]", "-n", "2")[0] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["verify", "builtin:expret", "--probes"], "Did you mean 'builtin:expert'"),
        (["verify", "FOLDER", "--probes", "-c", "singlepass"], "Did you mean 'single-pass'"),
        (["verify", "FOLDER"], "no prompts; give --prompt TEXT or --file FILE or --probes"),
        (["score", "no such/model/name", "-p", "a"], "no hub name"),
        (["verify", "FOLDER", "-p", " "], "prompt 1 is empty"),
        (["verify", "FOLDER", "-f", "no-such-file.txt"], "cannot read no-such-file.txt"),
        (["verify", "FOLDER", "--probes", "--max-kl", "-1"], "budget kl must be at least 0"),
        (["verify", "FOLDER", "--probes", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["score", "FOLDER", "-p", "a " * 2000], "exceeds the context"),
        (["generate", "FOLDER", "-p", "a", "--top-p", "3"], "top_p must be in (0, 1], got 3"),
        (["generate", "FOLDER", "-p", "a", "-n", "0"], "max_new_tokens must be at least 1"),
        (["generate", "FOLDER", "-p", "a", "--runer", "x"], "No such option"),
        (["veriffy"], "No such command 'veriffy'"),
        (["score", ".", "-p", "a"], "has no config.json"),
    ],
)
def test_bad_requests_end_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str], folder: str, argv: list[str], message: str
) -> None:
    code, out, err = run(capsys, *[folder if a == "FOLDER" else a for a in argv])
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_malformed_rows_are_named(capsys: pytest.CaptureFixture[str], folder: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": \n')
    assert "rows.jsonl line 2 is not valid JSON" in run(capsys, "score", folder, "-f", str(rows))[2]
    rows.write_text('{"text": "a"}\n{"texts": "b"}\n')
    assert "rows.jsonl line 2 has no field 'text'" in run(capsys, "score", folder, "-f", str(rows))[2]
    rows.write_text('{"text": 5}\n')
    assert "line 1: field 'text' is int, not text" in run(capsys, "score", folder, "-f", str(rows))[2]


def test_something_missing_here_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "score", "nobody/no-such-model-zzz", "-p", "a")
    assert code == 3
    assert "hub cannot be reached" in err


INTERRUPTED = """
import os, signal, sys
from twinrun.runners import generation
choose = generation._Rows.choose
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background ignores it
def interrupted(self, logits):
    os.kill(os.getpid(), signal.SIGINT)
    return choose(self, logits)
generation._Rows.choose = interrupted
from twinrun.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_with_130(folder: str) -> None:
    """A real signal in a real process, sent in the middle of its first step."""
    argv = [sys.executable, "-c", INTERRUPTED, "generate", folder, "-p", "Tom", "-n", "40", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 130
    assert done.stderr.strip() == "twinrun: interrupted"
    assert done.stdout == ""


def test_memory_plans_and_says_whether_it_fits(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    code, out, _ = run(capsys, "memory", folder, "--context", "64", "--batch", "2")
    assert code == 0
    assert "score with streamed logits" in out
    sized = ["memory", folder, "--context", "64", "--new-tokens", "8", "--device", "cpu", "--json"]
    code, out, err = run(capsys, *sized, "--memory", "1GiB")
    record = last_record(out)
    assert code == 0
    assert record["fits"]
    assert record["memory_bytes"] == 2**30
    assert {row["policy"] for row in record["logits"]} == {
        "whole prompt",
        "whole prompt, float32",
        "last row",
        "streamed",
    }
    assert "KV cache" in err
    code, out, err = run(capsys, *sized, "--memory", "1KB")
    assert code == 1
    assert not last_record(out)["fits"]
    assert "nothing fits" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["builtin:exprt", "--context", "8"], "Did you mean 'builtin:expert'"),
        (["builtin:expert", "--context", "-8"], "context must be a whole number, at least 1, got -8"),
        (["builtin:expert", "--context", "8", "--memory", "lots"], "memory 'lots' is no amount of bytes"),
        (["builtin:expert", "--context", "8", "--attention", "flash"], "cannot be planned"),
        (["builtin:expert"], "Missing option '--context'"),
    ],
)
def test_memory_refuses_in_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    code, out, err = run(capsys, "memory", *argv)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
