"""`twinrun diffuse`: texts and forwards, the verdict beside the speed, bad requests in one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import twinrun as tr
from tests.support.command import last_record, run
from tests.support.diffusion_folders import llada_folder
from twinrun.cli.diffuse_canvas import OPEN, CanvasText, live_canvas

QUESTION = "Tom has 3 apples. Tom buys 4 more. How many apples does Tom have now?"
MODEL = ["diffuse", "builtin:diffusion", "--dtype", "float32", "--chat", "--prompt", QUESTION, "-n", "32"]


def test_a_speed_stands_beside_its_verdict(capsys):
    code, out, _ = run(capsys, *MODEL, "--cache", "dual", "--commit", "threshold:0.9")
    assert code == 0
    assert "####" in out
    assert "NFE" in out
    assert "tokens per second of diffusion" in out
    assert "lossy" in out


def test_the_record_holds_run_and_comparison(capsys):
    code, out, _ = run(
        capsys, *MODEL, "--cache", "dual", "--commit", "threshold:0.9", "--refresh-every", "2", "--json"
    )
    found = last_record(out)
    assert code == 0
    compared = found["comparison"]
    assert found["settings"]["max_new_tokens"] == 32
    assert compared["verdict"]["verdict"] in ("lossy", "equivalent")
    assert compared["speed_up"]["ratio_median"] > 0
    assert compared["same_tokens"] <= compared["tokens_compared"]


def test_plain_decoding_is_its_own_reference(capsys):
    code, out, _ = run(capsys, *MODEL, "--json")
    assert code == 0
    assert last_record(out)["comparison"]["verdict"] == {"verdict": "reference"}


def test_outside_the_budget_no_speed_is_shown_and_it_fails(capsys):
    code, out, err = run(capsys, *MODEL, "--cache", "dual", "--max-kl", "1e-12", "--json")
    found = last_record(out)["comparison"]
    assert (code, found["verdict"]["verdict"], found["speed_up"]) == (1, "different", None)
    assert "no speed" in err


def test_without_a_verdict_there_is_no_speed(capsys):
    code, out, _ = run(capsys, *MODEL, "--cache", "dual", "--no-verify", "--json")
    found = last_record(out)
    assert (code, found["tokens_per_second"], found["comparison"]) == (0, None, None)
    assert "per second" not in out.splitlines()[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-n", "40"], "multiple of"),
        (["--steps", "0"], "steps"),
        (["-n", "2048"], "context"),
        (["--commit", "threshold:1.5"], r"[0, 1]"),
        (["--commit", "factor:-1"], "from 0 on"),
        (["--commit", "thresold"], "threshold"),
        (["--commit", "quota:x"], "whole number"),
        (["--commit", "threshold:0.9", "--steps", "8"], "steps"),
        (["--skip", "token"], "dual"),
        (["--cache", "duel"], "dual"),
        (["--refresh-every", "2"], "refresh_every"),
        (["--no-verify", "--against", "dual"], "leave one out"),
        (["--repeats", "0"], "at least 1"),
        (["--temperature", "-1"], "temperature"),
        (["--max-kl", "-1"], "budget kl"),
    ],
)
def test_a_bad_request_is_one_line(capsys, more, message):
    code, out, err = run(capsys, *MODEL, *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_causal_model_is_refused_and_a_canvas_by_causal_commands(capsys):
    code, _, err = run(capsys, "diffuse", "builtin:amateur", "--prompt", "a", "-n", "32")
    assert (code, err.count("\n")) == (2, 1)
    assert "causal" in err
    for argv in (
        ["generate", "builtin:diffusion", "--prompt", "a"],
        ["score", "builtin:diffusion", "--prompt", "a b"],
    ):
        code, _, err = run(capsys, *argv)
        assert (code, err.count("\n")) == (2, 1), argv
        assert "diffuse" in err, argv


def test_verify_takes_runners_of_a_canvas(capsys):
    code, out, _ = run(
        capsys, "verify", "builtin:diffusion", "--dtype", "float32", "--reference", "diffusion",
        "--candidate", "diffusion:dual+refresh_every=1", "--prompt", "2 + 3 = 5", "--json",
    )  # fmt: skip
    assert (code, last_record(out)["verdict"]) == (0, "identical")


def test_a_missing_mask_id_is_one_line(capsys, tmp_path: Path):
    folder = llada_folder(tmp_path / "llada")
    fields = json.loads((folder / "config.json").read_text())
    del fields["mask_token_id"]
    (folder / "config.json").write_text(json.dumps(fields))
    code, out, err = run(capsys, "diffuse", str(folder), "--prompt", "a", "-n", "32")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "mask" in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diffusion:duel", "Did you mean 'dual'"),
        ("diffusion:dual+refresh_evry=2", "Did you mean 'refresh_every'"),
        ("diffusion:dual+refresh_every=2+refresh_every=3", "second time"),
        ("diffusion:dual+refresh_every=x", "no whole number"),
        ("diffusion:dual+skip=tokn", "Did you mean 'token'"),
        ("diffusion:dual+skip=token:layers=3", "'layers' is not one of"),
        ("diffusion:dual+delay=no", "switch"),
        ("diffusion:dual+delay+skip=token", "no skip"),
    ],
)
def test_a_wrong_name_of_a_runner_is_one_line(capsys, name, message):
    argv = [
        "verify",
        "builtin:diffusion",
        "--reference",
        "diffusion",
        "--candidate",
        name,
        "--prompt",
        "2 + 3",
    ]
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_causal_commands_refuse_the_name_of_a_canvas_runner(capsys):
    for argv in (["generate", "--prompt", "a"], ["bench"]):
        code, out, err = run(capsys, argv[0], "builtin:amateur", *argv[1:], "--runner", "diffusion:dual")
        assert (code, out, err.count("\n")) == (2, "", 1), argv
        assert "twinrun diffuse" in err


def test_bench_refuses_a_canvas_runner():
    runner = tr.Diffusion(tr.load("builtin:diffusion"))
    with pytest.raises(tr.errors.ConfigError, match="twinrun diffuse"):
        tr.bench([runner], lengths=[8], new_tokens=32)


def test_lists_name_what_there_is(capsys):
    code, out, _ = run(capsys, "runners", "--json")
    names = {row["name"]: row["exact"] for row in last_record(out)["runners"]}
    assert code == 0
    assert {"diffusion": True, "diffusion:dual": False}.items() <= names.items()
    kinds = {row["name"]: row["kind"] for row in last_record(run(capsys, "models", "--json")[1])["models"]}
    assert kinds["diffusion"] == "masked diffusion"


def test_a_setting_in_words_is_the_one_in_python(capsys):
    argv = ["--cache", "dual", "--skip", "token:layer_k=3,threshold=0.999", "--no-verify", "--json"]
    settings = last_record(run(capsys, *MODEL, *argv)[1])["settings"]
    assert settings["skip"] == repr(tr.TokenSkip(layer_k=3, threshold=0.999))
    assert settings["cache"] == "dual"


def test_the_canvas_fills_in(capsys):
    """Every step shows what it committed and leaves the rest open; the last leaves nothing open."""
    model = tr.load("builtin:diffusion", dtype="float32")
    prompt = model.chat(QUESTION)
    canvas, left = CanvasText(model, [len(prompt)], 32), []

    def watch(step: Any) -> None:
        canvas.add(step)
        left.append(canvas.text().plain.count(OPEN))

    found = tr.Diffusion(model, commit=tr.Quota(4)).generate(prompt, 32, early_stop=False, observe=watch)
    assert left == [24, 16, 8, 0]
    assert found.text.replace("\n", "") in canvas.text().plain.replace("\n", "").replace("⏎", "")


def test_the_canvas_is_live_on_a_terminal_only(monkeypatch):
    model, out = tr.load("builtin:diffusion", dtype="float32"), io.StringIO()
    prompt = model.chat(QUESTION)
    with live_canvas(model, [prompt], 32) as observe:
        assert observe is None
    screen = Console(file=out, force_terminal=True, width=80)
    monkeypatch.setattr("twinrun.cli.diffuse_canvas.Console", lambda stderr: screen)
    with live_canvas(model, [prompt], 32) as observe:
        tr.Diffusion(model, commit=tr.Quota(4)).generate(prompt, 32, observe=observe)
    assert OPEN in out.getvalue()
    assert "####" in out.getvalue()


INTERRUPTED = """
import os, signal, sys
from twinrun.diffusion.chooser import Chooser
choose = Chooser.choose
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background ignores it
def interrupted(self, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return choose(self, *args, **kwargs)
Chooser.choose = interrupted
from twinrun.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_ends_with_130():
    """A real signal in a real process, sent in the middle of its first step."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *MODEL, "--json"], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip().splitlines()[-1] == "twinrun: interrupted"
