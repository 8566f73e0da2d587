"""`twinrun diffuse`: texts and forwards, the verdict beside the speed, bad requests in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from twinrun.cli.main import main

QUESTION = "Tom has 3 apples. Tom buys 4 more. How many apples does Tom have now?"
MODEL = ["diffuse", "builtin:diffusion", "--dtype", "float32", "--chat", "--prompt", QUESTION, "-n", "32"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def record(out: str) -> dict[str, Any]:
    found = json.loads(out.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


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
    found = record(out)
    assert code == 0
    compared = found["comparison"]
    assert found["settings"]["max_new_tokens"] == 32
    assert compared["verdict"]["verdict"] in ("lossy", "equivalent")
    assert compared["speed_up"]["ratio_median"] > 0
    assert compared["same_tokens"] <= compared["tokens_compared"]


def test_plain_decoding_is_its_own_reference(capsys):
    code, out, _ = run(capsys, *MODEL, "--json")
    assert code == 0
    assert record(out)["comparison"]["verdict"] == {"verdict": "reference"}


def test_outside_the_budget_no_speed_is_shown_and_it_fails(capsys):
    code, out, err = run(capsys, *MODEL, "--cache", "dual", "--max-kl", "1e-12", "--json")
    found = record(out)["comparison"]
    assert (code, found["verdict"]["verdict"], found["speed_up"]) == (1, "different", None)
    assert "no speed" in err


def test_without_a_verdict_there_is_no_speed(capsys):
    code, out, _ = run(capsys, *MODEL, "--cache", "dual", "--no-verify", "--json")
    found = record(out)
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
    assert (code, record(out)["verdict"]) == (0, "identical")
