"""`twinrun prune bench` and `twinrun prune eval`: what is typed, printed, written, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import last_record
from tests.support.sweeps import cheap_ceilings
from tests.support.tiny import tiny_folder
from twinrun.cli.main import main

PNG = b"\x89PNG\r\n\x1a\n"
BENCH = ["--first", "1", "--every", "1", "--new-tokens", "3", "--repeats", "2", "--budget-kl", "9"]
EVAL = [
    "--task",
    "niah_single",
    "--items",
    "2",
    "--answer-tokens",
    "3",
    "--digits",
    "3",
    "--schedule",
    "1:0.5",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny", layers=3))


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_ceilings(monkeypatch)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["prune", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_bench_writes_the_papers_table(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "t")
    argv = ["bench", folder, "--lengths", "40", "80", "600", "--keep", "0.7", "0.5", "--out", out, *BENCH]
    code, text, _ = run(capsys, *argv, "--json")
    assert code == 0
    record = last_record(text)
    assert [(r["length"], r["side"]) for r in record["rows"]] == [
        (n, f"recency {k}") for n in (40, 80, 600) for k in (0.7, 0.5)
    ]
    row = record["rows"][2]
    for side in ("baseline", "pruned"):
        assert {
            "prefill_latency_seconds", "decode_latency_seconds", "total_latency_seconds",
            "kv_lens_after_prefill", "tokens_kept", "tokens_pruned",
        } <= set(row[side])  # fmt: skip
    assert row["baseline"]["kv_lens_after_prefill"] == [80, 80, 80]
    assert row["pruned"]["kv_lens_after_prefill"] == [80, 56, 40]  # 0.7 and 0.49 of 80, rounded up
    assert (row["pruned"]["tokens_kept"], row["pruned"]["tokens_pruned"]) == (40, 40)
    assert row["kv_reduction"] == pytest.approx(1 - 176 / 240)
    assert row["pruned"]["mean_keep"] == pytest.approx(176 / 240)
    assert row["pruned"]["mean_keep_squared"] == pytest.approx((1 + 0.49 + 0.25) / 3)
    assert set(row["speedup"]) == {"prefill", "decode", "total"}
    assert row["flops_allow"] > 1.1
    assert row["pruned"]["verdict"]["verdict"] == "lossy"
    long = record["rows"][4]
    assert long["pruned"]["status"] == "too long"
    assert long["speedup"] is None
    assert "exceeds the context" in long["pruned"]["reason"]
    assert json.loads((tmp_path / "t" / "pruning.json").read_text()) == record
    assert (tmp_path / "t" / "pruning.png").read_bytes().startswith(PNG)
    assert "| 80 | recency 0.7 | lossy |" in (tmp_path / "t" / "pruning.md").read_text()
    code, text, _ = run(capsys, *argv, "--json", "--resume")
    assert code == 0
    assert last_record(text)["rows"] == record["rows"]


def test_a_speed_of_another_model_is_not_a_speed(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", folder, "--lengths", "40", "--keep", "0.5", *BENCH[:-1], "1e-9"]
    code, text, _ = run(capsys, *argv)
    assert code == 1
    line = next(line for line in text.splitlines() if "recency 0.5" in line)
    assert "different" in line
    assert "×" not in line


def test_the_papers_row_stands_beside_its_lengths() -> None:
    from twinrun.records.pruning import PAPER

    base = {4096: (72.51, 47.81), 32768: (949.54, 560.40), 131072: (8864.49, 4678.81)}
    for length, (whole, pruned) in base.items():  # prefill TFLOPs of Table 2 allow about what it measured
        assert PAPER[length]["prefill"] == pytest.approx(whole / pruned, rel=0.15)


def test_eval_writes_scores_and_pairs(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "q")
    argv = ["eval", folder, "--selector", "random", "--selector", "recency", "--lengths", "480", "--out", out]
    code, text, _ = run(capsys, *argv, *EVAL, "--json")
    assert code == 0
    record = last_record(text)
    assert [s["name"] for s in record["request"]["sides"]] == ["none", "random", "recency"]
    assert record["request"]["sides"][1]["schedule"] == {"1": 0.5}
    assert [(p["a"], p["b"], p["mode"]) for p in record["pairs"] if p["task"] is None] == [
        (a, b, mode)
        for mode in ("end", "unseen")
        for a, b in (("random", "none"), ("recency", "none"), ("recency", "random"))
    ]
    kept = {row["side"]: row["last_keep"] for row in record["overall"] if row["mode"] == "end"}
    assert kept["none"] == 1
    assert kept["random"] == pytest.approx(0.5, abs=0.01)
    assert json.loads((tmp_path / "q" / "quality.json").read_text()) == record
    assert (tmp_path / "q" / "quality.png").read_bytes().startswith(PNG)
    assert len((tmp_path / "q" / "answers.0.jsonl").read_text().splitlines()) == 3 * 2 * 2
    code, text, _ = run(capsys, *argv, *EVAL, "--json", "--resume")
    assert code == 0
    assert last_record(text)["cells"] == record["cells"]


def test_eval_shows_both_modes_apart(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "eval", folder, "--selector", "norm", "--lengths", "480", *EVAL)
    assert code == 0
    assert "question at the end of the prompt that is pruned" in text
    assert "question unseen when the context is pruned" in text
    assert "95 % intervals" in text


REFUSED = {
    "no selector": (["eval", "--selector", "rndom", "--first", "1"], "no selector 'rndom'"),
    "no scorer": (
        ["eval", "--selector", "learned", "--first", "1"],
        "needs trained scorers; give their folder, or builtin:NAME (--scorer DIR)",
    ),
    "unused scorer": (["eval", "--selector", "random", "--scorer", "x"], "no --selector learned uses it"),
    "task": (["eval", "--task", "niah"], "no task named 'niah'"),
    "no data": (["eval", "--task", "longbench:trec"], "give its folder or data.zip (--data)"),
    "schedule": (["eval", "--schedule", "1-0.5"], "no layer:keep pair"),
    "both": (["eval", "--schedule", "1:0.5", "--keep", "0.9"], "give one of them"),
    "layer 0": (["eval", "--schedule", "0:0.5"], "a stage at layer 0"),
    "growing": (["eval", "--schedule", "1:0.5,2:0.6"], "dropped tokens do not come back"),
    "ratio": (["bench", "--keep", "1.5"], "ratio must be in (0, 1], got 1.5"),
    "twice": (["bench", "--keep", "0.9", "0.9", "--first", "1"], "--keep 0.9 is given twice"),
    "oracle": (["bench", "--selector", "oracle", "--first", "1"], "the oracle needs the right answer"),
    "two": (["bench", "--selector", "random", "--scorer", "x"], "both say who chooses"),
    "first": (["bench", "--first", "9"], "first=9 is beyond the last layer"),
    "threads": (["bench", "--threads", "0"], "threads must be at least 1, got 0"),
    "lengths": (["bench", "--lengths", "0"], "lengths start at 1 token, got 0"),
}


@pytest.mark.parametrize(("argv", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_requests_end_with_one_line_and_code_2(
    folder: str, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(capsys, argv[0], folder, *argv[1:])
    assert code == 2
    assert error.count("\n") == 1
    assert message in error


def test_lm_eval_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from twinrun.quality.harness import harness_model

    harness_model.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code = main(["lm-eval", "run", "--model", "twinrun"])
    assert code == 3
    assert "pip install 'twinrun[lm-eval]'" in capsys.readouterr().err
