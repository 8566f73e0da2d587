"""`twinrun models` beside a model that is not causal, and one that solves the worst of several tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from twinrun.cli import models
from twinrun.models import builtin_names


def place(folder: Path, skill: dict[str, object] | None, **more: object) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a.weight": torch.zeros(3, 4), "b.weight": torch.zeros(5)}, folder / "model.safetensors")
    report = {"text": {"bits_per_byte": 2.5}, **({"skill": skill} if skill else {}), **more}
    (folder / "skill.json").write_text(json.dumps(report))


def test_each_row_says_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = {"exact": 0.625, "interval_95": [0.5, 0.75], "problems": 8}
    place(tmp_path / "causal", rate)
    place(tmp_path / "filling", {**rate, "problems_of": "one step"}, kind="masked diffusion")
    place(tmp_path / "writing", None)
    monkeypatch.setattr(builtin_names, "FOLDER", tmp_path)
    rows = {name: models._describe(name) for name in builtin_names.builtin_names()}
    assert {name: row["kind"] for name, row in rows.items()} == {
        "causal": "causal", "filling": "masked diffusion", "writing": "causal",
    }  # fmt: skip
    assert rows["filling"]["parameters"] == 17
    assert models._skill(rows["causal"]) == "62.5% exact answers (50.0% to 75.0%)"
    assert models._skill(rows["filling"]) == (
        "62.5% exact answers to problems of one step (50.0% to 75.0%); masked diffusion"
    )
    assert models._skill(rows["writing"]) == "2.50 bits per byte of text"
