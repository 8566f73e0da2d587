"""The script that trains the scorers of the long-context model: run small, measured, placed with its card."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import twinrun as tr
from tests.support.tiny import tiny_folder
from twinrun.prune.scorer import Scorer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALL = ["--samples", "9", "--held-out", "3", "--tokens", "400", "--epochs", "2", "--schedule", "1:0.7,3:0.4"]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import train_scorers

        yield train_scorers
    for name in set(sys.modules) - before:
        if name.startswith(("train_scorers", "scorer_", "long_", "builtin_")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), layers=4)


@pytest.mark.slow
def test_scorers_are_trained_measured_and_placed(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    out, call = folder / "scorer", ["--model", str(folder), "--build", str(tmp_path), *SMALL]
    assert script.main([*call, "--no-place"]) == 0
    assert not out.exists()
    assert script.main([*call, "--out", str(out)]) == 0
    scorer = Scorer.load(out, tr.load(folder))
    assert scorer.schedule == {1: 0.7, 3: 0.4}
    report = scorer.facts["quality"]
    assert set(report["exact"]) == {"whole prompt", "random", "recency", "learned", "oracle"}
    for layers in report["prediction"].values():
        for q in layers:
            assert -1 <= q["spearman"] <= 1
            assert 0 <= q["overlap"] <= 1
    card = (out / "README.md").read_text()
    assert f"| niah_multikey | 1 | {report['prediction']['niah_multikey'][0]['spearman']:.2f} |" in card
    assert (folder / "model.safetensors").exists()


@pytest.mark.slow
def test_the_ablation_places_nothing_and_writes_its_record(
    script: ModuleType, folder: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    call = ["--model", str(folder), "--build", str(tmp_path), *SMALL, "--ablation", "--record", str(record)]
    assert script.main(call) == 0
    found = json.loads(record.read_text())
    assert list(found["variants"]) == ["full", "without-mse", "without-ranking", "without-both", "offline"]
    assert set(found["other"]) == {"whole prompt", "random", "recency", "oracle"}


def test_needle_tokens_are_those_of_the_sentence(script: ModuleType, folder: Path) -> None:
    import scorer_measure

    from twinrun.prune.task_samples import TaskSamples, TaskSettings

    model = tr.load(folder)
    sample = TaskSamples(model, TaskSettings(source="niah_single", samples=1, tokens=400))[0]
    marks = scorer_measure.needle_tokens(model, sample, scorer_measure.NEEDLES["niah_single"])
    text = model.tokenizer.decode([i for i, m in zip(sample.prompt, marks, strict=True) if m])
    assert text.strip().startswith("One of the special magic numbers for ")
    assert text.strip().endswith(".")
    assert "grass" not in text
