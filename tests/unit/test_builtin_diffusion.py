"""`builtin:diffusion`: a folder in the layout of LLaDA, how a causal runner refuses it, and the skill of its card."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import twinrun as tr
from twinrun.errors import UnsupportedModelError
from twinrun.models.builtin_names import FOLDER as BUILTINS
from twinrun.models.translate import read_llada

FOLDER = BUILTINS / "diffusion"
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
LIVE_PROBLEMS = 40


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return json.loads((FOLDER / "skill.json").read_text())


@pytest.fixture(scope="module")
def card() -> Iterator[ModuleType]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import diffusion_card

        yield diffusion_card
    for name in set(sys.modules) - before:
        if name.startswith(("diffusion_", "builtin_")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def model() -> Any:
    return read_llada(FOLDER)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_folder_has_the_layout_of_llada(tokenizer: Any) -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "model.safetensors", "skill.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_000_000
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "llada"
    assert config["mask_token_id"] == tokenizer.mask_token_id == len(tokenizer) - 1
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert "auto_map" not in config


def test_a_causal_runner_refuses_it_in_one_line() -> None:
    with pytest.raises(
        UnsupportedModelError, match="builtin:diffusion is a masked-diffusion model"
    ) as refusal:
        tr.KVCache(tr.load("builtin:diffusion"))
    assert "\n" not in str(refusal.value)


def test_it_reaches_its_bar_and_beats_frequencies_everywhere(report: dict[str, Any]) -> None:
    one = report["skill"]["by_steps"]["1"]
    assert one["problems"] >= 400
    assert one["hits"] / one["problems"] == one["exact"] >= 0.60
    losses = [*report["bounds"]["answers"].values(), report["bounds"]["text"]]
    assert len(losses) == 6
    assert all(row["model"]["high"] < row["unigram"]["low"] for row in losses)


def test_live_skill_agrees_with_the_card(
    card: ModuleType, model: Any, tokenizer: Any, report: dict[str, Any]
) -> None:
    """Four standard errors of the problems around the claimed rate: another machine's rounding stays inside."""
    claimed = report["skill"]["exact"]
    got = card.exact_rate(model, tokenizer, card.held_out(LIVE_PROBLEMS, 1))["exact"]
    assert abs(got - claimed) <= 4 * (claimed * (1 - claimed) / LIVE_PROBLEMS) ** 0.5


def test_without_attention_it_solves_nothing(card: ModuleType, tokenizer: Any) -> None:
    spoilt = read_llada(FOLDER)
    for layer in spoilt.model.layers:
        torch.nn.init.zeros_(layer.self_attn.v_proj.weight)
    assert card.exact_rate(spoilt, tokenizer, card.held_out(12, 1))["exact"] <= 0.2


def test_the_card_is_drawn_from_the_record(card: ModuleType, report: dict[str, Any]) -> None:
    text = (FOLDER / "README.md").read_text()
    assert text == card.render(report)
    assert f"| 1 step | {100 * report['skill']['exact']:.1f} % |" in text
    assert report["weights_bytes"] == (FOLDER / "model.safetensors").stat().st_size
