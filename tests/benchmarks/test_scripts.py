"""The scripts that time something run, and write what benchmarks/README.md says. Tiny sizes, no speed is judged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
TIMED = ["single_pass.py", "streamed_kl.py", "trace_cost.py", "blame_cost.py", "prune_prefill.py",
         "contrast_amateur.py",
         "contrast_sample.py"]  # fmt: skip
SHAPED = ["single_pass.py", "streamed_kl.py", "blame_cost.py", "prune_prefill.py", "contrast_amateur.py"]
"""Those whose model is built from a named shape."""
UNTIMED = ["verify_cost.py", "short_texts.py", "ring_soak.py", "memory_plan.py"]
DIFFUSION = ["diffusion_speed.py", "diffusion_quality.py", "diffusion_answers.py", "diffusion_shape.py",
             "diffusion_skip.py"]  # fmt: skip
DECODE = ["decode_gpt.py", "decode_gpt2.py", "decode_qwen.py"]
ON_CUDA = "gpu_score.py"
KEYS = {"benchmark", "schema", "about", "quick", "config", "arms", "ratios", "bars", "bars_apply", "passed"}
ARMS = {
    "single_pass.py": {"single pass", "bare forward", "single pass (A/A)", "kv cache, one forward a token"},
    "streamed_kl.py": {"streamed", "whole", "streamed (A/A)"},
    "trace_cost.py": {"recompute, untraced", "recompute, traced to disk", "kv-cache:dynamic, traced"},
    "decode_gpt.py": {
        "kv-cache:static+captured",
        "kv-cache:rolling+packed",
        "kv-cache:static+captured (A/A)",
    },
    "decode_gpt2.py": {"captured, float32", "packed, bfloat16", "generate, float32"},
    "decode_qwen.py": {"packed", "captured", "generate, dynamic cache", "generate, static cache"},
    "prune_prefill.py": {"whole prefill", "pruned prefill", "whole prefill (A/A)"},
    "contrast_amateur.py": {
        "one answer a forward, 8 tokens",
        "one a prefix, 16 tokens",
        "one answer a forward, 16 tokens (A/A)",
    },
    "contrast_sample.py": {"ours", "public algorithm, 64 prefixes a forward", "ours (A/A)"},
    "blame_cost.py": {"one forward", "one forward (A/A)", "blame"},
}


def start(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(BENCHMARKS / script), *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=110, env=env, cwd=BENCHMARKS.parent
    )


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in a record")


def read(text: str) -> dict:
    return json.loads(text, parse_constant=refuse)


@pytest.mark.slow
@pytest.mark.parametrize("script", [*TIMED, *DECODE])
def test_a_quick_run_writes_a_whole_record(script, tmp_path):
    out = tmp_path / "deep" / "record.json"
    done = start(script, "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    record = read(out.read_text("utf-8"))
    assert read(done.stdout.splitlines()[-1]) == record
    assert [path.name for path in out.parent.iterdir()] == ["record.json"]  # no temporary is left
    assert KEYS | {"machine", "environment"} <= set(record)
    assert record["benchmark"] == Path(script).stem
    assert record["quick"] is True
    assert record["bars_apply"] is False
    assert set(record["arms"]) >= ARMS[script]
    for arm in record["arms"].values():
        assert 0 < arm["seconds_p10"] <= arm["seconds_median"] <= arm["seconds_p90"]
        assert len(arm["seconds_samples"]) == arm["repeats"]
    for found in record["ratios"].values():
        assert 0 < found["ratio_p10"] <= found["ratio_median"] <= found["ratio_p90"]
    assert any("A/A" in name for name in record["ratios"])
    for bar in record["bars"]:
        # A share of bytes or of seconds below zero measures nothing.
        assert bar["value"] is None or bar["value"] >= 0
        met = bar["value"] >= bar["at_least"] if "at_least" in bar else bar["value"] <= bar["at_most"]
        assert bar["passed"] is met
    assert record["passed"] is all(bar["passed"] for bar in record["bars"])
    assert {"python", "cpu", "threads", "packages", "commit", "dirty"} <= set(record["environment"])
    assert {"quiet", "cores_used_by_others_mean"} <= set(record["machine"])


@pytest.mark.slow
def test_speeds_of_scoring_stand_beside_verdicts(tmp_path):
    out = tmp_path / "record.json"
    assert start("single_pass.py", "--quick", "--new-tokens", "5", "--out", str(out)).returncode == 0
    record = read(out.read_text("utf-8"))
    assert record["config"]["new_tokens"] == 5
    assert {name: v["verdict"] for name, v in record["verdicts"].items()}.keys() == {
        "single pass",
        "kv cache",
    }
    assert all(v["verdict"] in {"identical", "equivalent"} for v in record["verdicts"].values())
    assert all(v["positions"] == 6 for v in record["verdicts"].values())
    assert record["estimate"]["complete_run_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("script", [*TIMED, ON_CUDA])
def test_help_names_every_setting(script):
    done = start(script, "--help")
    assert done.returncode == 0
    options = set(done.stdout.replace(",", " ").split())
    assert {"--quick", "--out", "--repeats"} <= options
    assert ("--shape" in options) is (script in SHAPED)


@pytest.mark.slow
@pytest.mark.parametrize("script", SHAPED)
def test_an_unknown_shape_is_one_line_and_exit_2(script, tmp_path):
    done = start(script, "--shape", "qwen2.5-0.5", "--out", str(tmp_path / "x.json"))
    assert done.returncode == 2
    assert "qwen2.5-0.5b" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_one_and_else_says_so_in_one_line(tmp_path):
    done = start(ON_CUDA, "--quick", "--out", str(tmp_path / "x.json"))
    if torch.cuda.is_available():
        assert done.returncode == 0, done.stderr[-2000:]
        assert read((tmp_path / "x.json").read_text("utf-8"))["parts"]
    else:
        assert done.returncode == 3
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", TIMED)
def test_the_committed_record_is_a_full_run(script):
    record = read((BENCHMARKS / "results" / script).with_suffix(".json").read_text("utf-8"))
    assert set(record) >= KEYS
    assert record["quick"] is False
    assert record["bars_apply"] is True


@pytest.mark.slow
@pytest.mark.parametrize("script", [*UNTIMED, *DIFFUSION])
def test_the_other_scripts_run(script: str, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    done = start(script, "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    record = read(done.stdout.strip().splitlines()[-1])
    assert record == read(out.read_text())
    assert record["quick"]
    assert record["bars"]
    assert not record["bars_apply"]


@pytest.mark.slow
def test_lengths_of_table_2_are_kept_between_sittings(tmp_path):
    """One length a sitting; the second goes on, the third finds everything done and says the same."""
    given = (
        "--quick",
        "--minutes",
        "0.0001",
        "--work",
        str(tmp_path / "w"),
        "--out",
        str(tmp_path / "x.json"),
    )
    found = []
    for _sitting in range(3):
        done = start("prune_table2.py", *given)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(read(done.stdout.splitlines()[-1]))
    lengths = [sorted({row["length"] for row in record["rows"]}) for record in found]
    assert lengths == [[48], [48, 64], [48, 64]]
    assert found[1]["rows"] == found[2]["rows"]
    assert [record["bars"][-1]["value"] for record in found] == [1, 2, 2]
    row = found[1]["rows"][0]
    keys = {f"{part}_latency_seconds" for part in ("prefill", "decode", "total")}
    keys |= {"kv_lens_after_prefill", "tokens_kept", "tokens_pruned"}
    assert keys <= row["baseline"].keys() & row["pruned"].keys()
    assert row["speedup"].keys() == {"prefill", "decode", "total"}
    assert 0 < row["kv_reduction"] < 1


@pytest.mark.slow
def test_answers_behind_pruned_prompts_are_measured_and_resumed(tmp_path):
    given = ("--quick", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "x.json"))
    first, again = start("prune_quality.py", *given), start("prune_quality.py", *given)
    assert first.returncode == again.returncode == 0, first.stderr[-2000:]
    one, two = (read(done.stdout.splitlines()[-1]) for done in (first, again))
    assert "niah_single" in first.stderr
    assert "niah_single" not in again.stderr
    assert one["overall"] == two["overall"]
    scores = {(row["mode"], row["side"]): row["score"] for row in one["overall"]}
    assert scores["end", "none"] > 0.9
    assert scores["end", "learned"] > scores["end", "random"]
    assert len(one["bars"]) == 9
    assert one["bars"][-1]["value"] == 0


@pytest.mark.slow
def test_saliency_and_stages_are_measured(tmp_path):
    done = start("prune_saliency.py", "--quick", "--out", str(tmp_path / "x.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    record = read(done.stdout.splitlines()[-1])
    kinds = {f"{sign}, {output}" for sign in ("abs", "signed") for output in ("loss", "logit")}
    assert record["chosen"].keys() == kinds | {"whole prompt", "random", "recency"}
    assert record["one_random_stage"].keys() == {"1", "4"}


@pytest.mark.slow
def test_contrast_training_is_measured_arm_by_arm(tmp_path):
    """A second run finds everything done, and says the same."""
    given = (
        "--quick",
        "--problems",
        "30",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "x.json"),
    )
    first, again = start("contrast_train.py", *given), start("contrast_train.py", *given)
    assert first.returncode == again.returncode == 0, first.stderr[-2000:]
    one, two = (read(done.stdout.splitlines()[-1]) for done in (first, again))
    assert one.keys() >= KEYS
    assert "training contrast" in first.stderr
    assert "training contrast" not in again.stderr
    assert one["results"] == two["results"]
    assert set(one["sides"]) == {"base", "contrast"}
    assert len(one["results"]["base"]["right"]) == 12
    assert one["costs"][0]["beta"] == 0.4
    assert one["labels"]["steps_kept"] >= one["labels"]["labels_of_one_id"] > 0
