"""`twinrun trace`, `twinrun trace show` and `twinrun faults` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import last_record, run
from twinrun.faults.registry import FAULTS

MODEL = ["builtin:amateur", "--dtype", "float32", "--prompt", "Tom has 3 apples.", "--max-new-tokens", "5"]

CANVAS = [
    "builtin:diffusion", "--dtype", "float32", "--prompt", "Tom has 3 apples.", "--max-new-tokens", "32",
    "-r", "diffusion",
]  # fmt: skip


def test_a_clean_trace_is_recorded_shown_and_compared(capsys, tmp_path):
    out = tmp_path / "t"
    code, text, _ = run(capsys, "trace", *MODEL, "--out", str(out), "--json")
    assert code == 0
    found = last_record(text)
    assert found["divergence"] is None
    assert found["verdict"]["verdict"] in ("identical", "equivalent")
    assert Path(found["page"]).read_text("utf-8").startswith("<!doctype html>")
    code, text, _ = run(capsys, "trace", "show", str(out))
    assert code == 0
    assert "builtin:amateur" in text
    code, text, _ = run(capsys, "trace", "show", str(out), "--against", str(out))
    assert (code, text) == (0, "the two candidates agree to the end\n")
    code, _, err = run(capsys, "trace", *MODEL, "--out", str(out))
    assert (code, err.count("\n")) == (2, 1)
    assert "not empty" in err


def test_a_planted_fault_is_named_and_fails(capsys):
    code, text, _ = run(capsys, "trace", *MODEL, "--plant", "value-scale-off", "--json")
    found = last_record(text)
    assert code == 1
    assert found["blame"]["module"].endswith("v_proj")
    assert found["divergence"]["kind"] == "numeric divergence"
    code, text, _ = run(
        capsys, "trace", *MODEL, "--plant", "value-scale-off", "--by", "layer", "--forced", "--json"
    )
    assert code == 1
    assert last_record(text)["blame"]["module"].split(".")[-1].isdigit()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trace", "builtin:amateur"], "no prompt"),
        (["trace", *MODEL, "--plant", "value-scale"], "Did you mean 'value-scale-off'"),
        (["trace", *MODEL, "--level", "all"], "unknown level 'all'"),
        (["trace", *MODEL, "--by", "head"], "by must be"),
        (["trace", *MODEL, "--candidate", "kv-cash"], "no runner named 'kv-cash'"),
        (["trace", *CANVAS, "-c", "diffusion:dual+skipp"], "Did you mean 'skip'"),
        (["trace", *CANVAS, "-c", "kv-cache"], "fills in masked tokens"),
        (["trace", *CANVAS, "-c", "diffusion:dual", "--plant", "skip-compares-rows"], "does not show in"),
        (["trace", "show", "nowhere"], "holds no trace.json"),
        (["faults", "--name", "value-scale"], "Did you mean 'value-scale-off'"),
        (["faults", "--dtype", "float8", "--name", "double-bos"], "unknown precision 'float8'"),
    ],
)
def test_bad_requests_are_one_line(capsys, argv, says):
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_faults_are_listed_and_run(capsys, tmp_path):
    code, text, _ = run(capsys, "faults", "--list", "--json")
    assert code == 0
    assert [f["name"] for f in last_record(text)["faults"]] == list(FAULTS)
    out = tmp_path / "faults.json"
    code, text, _ = run(capsys, "faults", "-n", "value-scale-off", "--dtype", "float32", "--out", str(out))
    assert code == 0
    assert "1 of 1 caught, 1 named; 1 clean runs, 0 false alarms" in text
    assert json.loads(out.read_text("utf-8"))["passed"] is True


def test_two_canvases_are_traced_shown_and_compared(capsys, tmp_path):
    out = tmp_path / "t"
    code, text, _ = run(capsys, "trace", *CANVAS, "-c", "diffusion:dual+skip", "--out", str(out), "--json")
    assert code == 0
    found = last_record(text)
    assert (found["passed"], found["findings"]) == (True, [])
    assert found["skipped"]["candidate"]["skipped_tokens"] > 0
    page = Path(found["page"]).read_text("utf-8")
    assert "The canvas filling in" in page
    code, text, _ = run(capsys, "trace", "show", str(out))
    assert code == 0
    assert "diffusion:dual+skip" in text
    code, text, _ = run(capsys, "trace", "show", str(out), "--against", str(out))
    assert (code, text) == (0, "the two candidates agree to the end\n")


def test_a_fault_planted_in_a_canvas_is_named_and_fails(capsys):
    code, text, _ = run(
        capsys, "trace", *CANVAS, "-c", "diffusion:dual+skip", "--plant", "skip-compares-rows", "--json"
    )
    assert code == 1
    (found,) = last_record(text)["findings"]
    assert found["where"] == "skip decision"
    assert "step 1 of block 0 compares position 0 with position" in found["sentence"]
