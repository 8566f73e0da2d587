"""`twinrun prune saliency` and `twinrun prune train`: done, resumed, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import twinrun as tr
from tests.support.command import last_record, run
from tests.support.prune_tiny import jsonl
from tests.support.tiny import tiny_folder
from twinrun.prune.scorer import Scorer

TASK = ("--data", "arithmetic", "--samples", "6", "--schedule", "1:0.7,3:0.4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("tiny"), layers=4))


def test_targets_then_scorers_then_pruning(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets, out = str(tmp_path / "targets"), str(tmp_path / "scorer")
    for _ in range(2):  # the second time there is nothing left to do
        code, text, _ = run(capsys, "prune", "saliency", folder, *TASK, "--out", targets, "--json")
        assert code == 0
        record = last_record(text)
        assert (record["samples"], record["layers"], record["finished"]) == (6, [1, 3], True)
    call = ("prune", "train", folder, *TASK, "--targets", targets, "--batch", "3", "--hidden", "4")
    code, text, _ = run(capsys, *call, "--out", out, "--json")
    assert code == 0
    assert last_record(text)["share_of_model_flops"] < 0.01
    code, text, _ = run(capsys, *call, "--out", str(tmp_path / "cheap"), "--offline")
    assert code == 0
    assert "of the model's operations" in text
    model = tr.load(folder)
    scorer = Scorer.load(out, model)
    pruned = tr.Pruned(model, scorer, schedule=scorer.schedule)
    assert pruned.generate("Tom has 3 apples and buys 4 more. How many?", max_new_tokens=2).texts


def test_bad_requests_end_with_two_and_one_line(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "o"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "answer": "b"}\nnonsense\n')
    other = jsonl(tmp_path / "other.jsonl", [{"prompt": "a b c d e f g", "answer": "b"}])
    targets = str(tmp_path / "t")
    assert run(capsys, "prune", "saliency", folder, *TASK, "--out", targets)[0] == 0
    good = ("--schedule", "1:0.7,3:0.4")
    cases = {
        "broken.jsonl line 2 is not valid JSON": ("saliency", folder, "--data", str(broken), *good, *out),
        "no built-in data called 'retrival'": ("saliency", folder, "--data", "retrival", *good, *out),
        "layer 0": ("saliency", folder, "--data", "arithmetic", "--schedule", "0:0.5", *out),
        "prunes at layer 9": ("saliency", folder, "--data", "arithmetic", "--schedule", "9:0.5", *out),
        "is no schedule": ("saliency", folder, "--data", "arithmetic", "--schedule", "1:x", *out),
        "need targets": ("train", folder, *TASK, *out),
        "holds no targets": ("train", folder, *TASK, "--targets", str(tmp_path / "none"), *out),
        "has no target in": ("train", folder, "--data", str(other), *good, "--targets", targets, *out),
        "other weights": ("train", "builtin:expert", *TASK, "--targets", targets, *out),
        "no such data": ("train", folder, *TASK, "--targets", targets, "--too-long", "no such data", *out),
    }
    for message, call in cases.items():
        code, _, error = run(capsys, "prune", *call)
        assert code == 2, message
        assert message in error, error
        assert len(error.strip().splitlines()) == 1, error


def test_targets_of_one_model_do_not_train_another(
    tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = str(tmp_path / "t")
    assert run(capsys, "prune", "saliency", folder, *TASK, "--out", targets)[0] == 0
    twin = str(tiny_folder(tmp_path / "twin", layers=4, seed=1))
    code, _, error = run(
        capsys, "prune", "train", twin, *TASK, "--targets", targets, "--out", str(tmp_path / "o")
    )
    assert code == 2
    assert "other weights or another config" in error


@pytest.mark.parametrize("verb", ["saliency", "train"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "prune", verb, "--help")
    assert code == 0
    assert "--schedule" in text
