"""The commands: sample, train, merge, eval in a row; baselines; and what is refused, in one line with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import last_record, run
from tests.support.tiny import tiny_folder

SMALL = [
    "--steps",
    "2",
    "--every",
    "1",
    "--batch-size",
    "2",
    "--precision",
    "float32",
    "--validation",
    "0.25",
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    from twinrun.cli.main import main

    out = tmp_path_factory.mktemp("made") / "samples"
    command = "contrast sample --expert builtin:expert --amateur builtin:amateur --data builtin:arithmetic"
    options = ["--limit", "8", "--beta", "0", "-n", "90", "--system-prompt", "", "--out", str(out)]
    assert main([*command.split(), *options]) == 0
    return out


@pytest.fixture(scope="module")
def adapter(samples) -> Path:
    from twinrun.cli.main import main

    out = samples.parent / "adapter"
    command = ["contrast", "train", "--expert", "builtin:expert", "--samples", str(samples), "--beta", "0.4"]
    assert main([*command, "--lr", "0.003", "--out", str(out), *SMALL]) == 0
    return out


def test_what_training_prints_and_records(capsys, samples, tmp_path) -> None:
    command = ["contrast", "train", "--expert", "builtin:expert", "--samples", str(samples), "--beta", "0.4"]
    code, out, err = run(capsys, *command, "--out", str(tmp_path / "a"), *SMALL, "--json")
    assert code == 0, err
    found = last_record(out)
    assert found["schema"] == "twinrun.training/1"
    assert found["steps"] == 2
    assert found["verdict"].startswith("equivalent")
    assert "training check: equivalent" in err
    assert "times fewer than a row a step" in err
    assert {"adapter_model.safetensors", "request.json", "training.json"} <= {
        p.name for p in (tmp_path / "a").iterdir()
    }


def test_merged_checkpoint_and_adapter_are_examined_on_the_same_problems(capsys, adapter, tmp_path) -> None:
    merged, record = tmp_path / "merged", tmp_path / "eval.json"
    code, out, err = run(capsys, "contrast", "merge", str(adapter), "--out", str(merged))
    assert code == 0, err
    assert out.startswith("equivalent: ")
    names = ["builtin:expert", str(adapter), str(merged)]
    options = ["--limit", "6", "-n", "90", "--dtype", "float32", "--out", str(record)]
    code, out, err = run(capsys, "contrast", "eval", *names, *options, "--json")
    assert code == 0, err
    found = last_record(out)
    assert list(found["sides"]) == names
    assert found["sides"][str(adapter)]["right"] == found["sides"][str(merged)]["right"]
    assert len(found["pairs"]) == 3
    answers = json.loads(record.read_text())["answers"]
    assert answers[str(adapter)] == answers[str(merged)]
    assert "McNemar p = " in err


@pytest.mark.parametrize("method", ["sft", "uniform"])
def test_baselines(capsys, samples, tmp_path, method) -> None:
    command = ["contrast", "train", "--expert", "builtin:expert", "--samples", str(samples), "--beta", "0.4"]
    more = [
        "--method",
        method,
        "--references",
        "builtin:arithmetic",
        "--no-check",
        "--out",
        str(tmp_path / "a"),
    ]
    code, out, err = run(capsys, *command, *more, *SMALL, "--validation", "0", "--json")
    assert code == 0, err
    assert last_record(out)["verdict"] is None


def refusals(samples: Path, tmp_path: Path) -> dict[str, tuple[list[str], int, str]]:
    expert = ["contrast", "train", "--expert", "builtin:expert", "--out", str(tmp_path / "x"), *SMALL]
    mine = [*expert, "--samples", str(samples)]
    return {
        "no samples": ([*expert, "--samples", str(tmp_path)], 2, "holds no samples.json"),
        "another model": (
            [*mine, "--expert", "builtin:amateur"],
            2,
            "was made of another model than builtin:amateur",
        ),
        "nothing above": ([*mine, "--beta", "99"], 2, "the samples hold no steps with KL above 99"),
        "method": ([*mine, "--method", "sfft"], 2, "no method named 'sfft'"),
        "no references": ([*mine, "--method", "sft"], 2, "give is_right (--references"),
        "set": ([*mine, "--set", "fsdp"], 2, "--set takes NAME=VALUE"),
        "target": ([*mine, "--target", "qproj"], 2, "has no modules called qproj"),
        "no adapter": (["contrast", "merge", str(tmp_path), "--out", "m"], 2, "holds no adapter_config.json"),
        "twice": (["contrast", "eval", "builtin:expert", "builtin:expert"], 2, "a model is named twice"),
        "steps": (["contrast", "eval", "builtin:expert", "--steps", "two"], 2, "--steps takes MIN-MAX"),
        "data": (["contrast", "eval", "builtin:expert", "--data", "no.jsonl"], 2, "cannot read no.jsonl"),
    }


def test_refusals_are_one_line(capsys, samples, tmp_path) -> None:
    for name, (argv, expected, message) in refusals(samples, tmp_path).items():
        code, _, err = run(capsys, *argv)
        assert code == expected, (name, err)
        assert err.startswith("twinrun: "), name
        assert message in err, (name, err)
        assert err.count("\n") == 1, (name, err)


def test_an_adapter_of_another_base_is_refused(capsys, adapter, tmp_path) -> None:
    other = tiny_folder(tmp_path / "other")
    code, _, err = run(
        capsys, "contrast", "merge", str(adapter), "--base", str(other), "--out", str(tmp_path / "m")
    )
    assert code == 2
    assert "was made of another model than" in err
    assert not (tmp_path / "m").exists()


def test_a_machine_without_peft_says_what_to_install(capsys, monkeypatch, samples, tmp_path) -> None:
    from twinrun.contrast import adapt

    monkeypatch.setattr(adapt.importlib.util, "find_spec", lambda _: None)
    command = ["contrast", "train", "--expert", "builtin:expert", "--samples", str(samples)]
    code, _, err = run(capsys, *command, "--out", str(tmp_path / "x"))
    assert code == 3
    assert "pip install 'twinrun[train]'" in err
