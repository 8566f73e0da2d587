"""Training: it learns, it resumes exactly, the model is unharmed, and what cannot be trained is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import twinrun as tr
from tests.conftest import fingerprint
from tests.support.lessons import store
from tests.support.tiny import tiny_folder
from twinrun.contrast import adapt as adapting
from twinrun.contrast.adapt import open_adapted
from twinrun.contrast.samples import StepSample
from twinrun.contrast.store import Sampled, SampleStore
from twinrun.contrast.train import train
from twinrun.contrast.train_folder import newest_checkpoint
from twinrun.contrast.train_settings import LoraSettings, TrainSettings
from twinrun.errors import ConfigError, MissingBackendError, NonFiniteError, TwinrunError

SHORT = TrainSettings(
    steps=6,
    every=2,
    batch_size=3,
    accumulation=2,
    precision="float32",
    validation=0.3,
    learning_rate=2e-2,
    check=False,
    extra={"logging_steps": 1},
)


class Stopped(Exception):
    """A training that somebody stopped."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Iterator[tr.Model]:
    found = tr.load(str(tiny_folder(tmp_path_factory.mktemp("tiny"))), dtype="float32")
    before = fingerprint(found.model)
    yield found
    assert fingerprint(found.model) == before, "training changed the model"


@pytest.fixture(scope="module")
def samples(tmp_path_factory, model) -> SampleStore:
    return store(tmp_path_factory.mktemp("made") / "samples", model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, samples) -> Path:
    """An uninterrupted training."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train(model, samples, out, SHORT)
    return out


def adapter(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def stop_after(step: int) -> Callable[[int, int], None]:
    def on_step(done: int, _total: int) -> None:
        if done == step:
            raise Stopped

    return on_step


def test_it_learns_and_says_what_it_did(model, samples, whole) -> None:
    record = json.loads((whole / "training.json").read_text())
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert len(losses) == 3
    taught = [row["loss"] for row in rows if "loss" in row]
    assert len(taught) == 6
    assert taught[-1] < taught[0]
    assert record["validation_loss"] == min(losses)
    assert record["steps"] == 6
    assert record["lessons"] + record["validation_lessons"] == 12
    assert record["cost"]["row_per_step_over_packed"] > 2
    assert not any(p.requires_grad is False for p in model.core.parameters())
    assert (
        train(model, samples, whole, SHORT).to_json()["cost"] == record["cost"]
    )  # done already: nothing runs


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_stopped_training_ends_as_if_it_had_not_been(tmp_path, model, samples, whole, step) -> None:
    with pytest.raises(Stopped):
        train(model, samples, tmp_path / "out", SHORT, on_step=stop_after(step))
    assert not (tmp_path / "out" / "training.json").exists()
    train(model, samples, tmp_path / "out", SHORT)
    assert adapter(tmp_path / "out") == adapter(whole)
    assert (tmp_path / "out" / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()


def test_another_seed_is_another_adapter(tmp_path, model, samples, whole) -> None:
    train(model, samples, tmp_path / "out", replace(SHORT, seed=1))
    assert adapter(tmp_path / "out") != adapter(whole)


def test_a_checkpoint_that_was_cut_off_is_not_taken(tmp_path) -> None:
    for step, text in ((2, "{}"), (10, "{}"), (12, '{"global_step": 1'), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if text is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    assert newest_checkpoint(tmp_path / "none") is None


def test_accumulated_batches_weigh_tokens_not_answers(tmp_path, model, samples) -> None:
    """Two forwards of an answer each give the step that one forward of both gives, however many tokens they tune."""
    plan = replace(
        SHORT, steps=2, every=1, validation=0.0, lora=LoraSettings(dropout=0.0), learning_rate=1e-2
    )
    train(model, samples, tmp_path / "two", replace(plan, batch_size=1, accumulation=2))
    train(model, samples, tmp_path / "one", replace(plan, batch_size=2, accumulation=1))
    two, one = (weights(model, tmp_path / name) for name in ("two", "one"))
    assert (two - one).norm() < 1e-5 * one.norm()


def weights(model: tr.Model, folder: Path) -> Tensor:
    from safetensors.torch import load_file

    return torch.cat(
        [t.reshape(-1) for _, t in sorted(load_file(folder / "adapter_model.safetensors").items())]
    )


def test_training_stops_early_and_keeps_the_best(tmp_path, model, samples) -> None:
    plan = replace(SHORT, steps=40, every=1, learning_rate=0.3, patience=2, schedule="constant")
    found = train(model, samples, tmp_path / "out", plan)
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert found.steps < 40
    assert found.best_step == min(losses, key=lambda step: losses[step])
    assert found.validation_loss == min(losses.values())


@pytest.mark.parametrize("method", ["sft", "uniform"])
def test_baselines_train(tmp_path, model, samples, method) -> None:
    plan = replace(SHORT, method=method, beta=0.4, steps=2)
    found = train(model, samples, tmp_path / "out", plan, is_right=lambda t: t.index > 2)
    assert found.steps == 2
    assert found.lessons > 0


def test_loss_that_is_no_number_stops_training(tmp_path, model, samples, monkeypatch) -> None:
    from twinrun.contrast import trainer

    monkeypatch.setattr(trainer, "soft_kl", lambda logits, *_: logits.sum(-1) * float("nan"))
    with pytest.raises(NonFiniteError, match="the loss is nan at step 1; lower the learning rate"):
        train(model, samples, tmp_path / "out", SHORT)


def test_without_peft_the_line_to_install_it_is_said(tmp_path, model, samples, monkeypatch) -> None:
    monkeypatch.setattr(adapting.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingBackendError, match=r"pip install 'twinrun\[train\]'"):
        train(model, samples, tmp_path / "out", SHORT)
    with pytest.raises(MissingBackendError, match=r"pip install 'twinrun\[train\]'"):
        open_adapted(model, tmp_path)


def refused(tmp_path: Path, model: tr.Model, given: Any, plan: TrainSettings = SHORT) -> str:
    with pytest.raises(TwinrunError) as caught:
        train(model, given, tmp_path / "out", plan)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_of_another_model_are_refused(tmp_path, model, samples, amateur) -> None:
    assert f"made of another model than {amateur.name}" in refused(tmp_path, amateur, samples)


def test_a_model_in_another_precision_is_the_same_model(tmp_path, samples, model) -> None:
    """The samples were made of the float32 checkpoint; bfloat16 is not it, the same numbers one up are."""
    low = tr.load(model.name, dtype="bfloat16")
    assert (
        "another model" in refused(tmp_path, low, store(tmp_path / "up", model)) or low.dtype == model.dtype
    )
    made = store(tmp_path / "low", low)
    up = tr.Model(tr.load(model.name, dtype="bfloat16").model.float(), model.tokenizer, name="up")
    train(up, made, tmp_path / "fine", replace(SHORT, steps=1, every=1))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"step": 400}, "step 400 is not in its answer of"),
        ({"token_ids": (100_000,), "weights": (1.0,)}, "label id 100000 is outside the vocabulary"),
    ],
)
def test_steps_and_ids_beyond_are_refused(tmp_path, model, step, message) -> None:
    made = store(tmp_path / "good", model, problems=10)
    rows = list(made.sampled())
    bad = StepSample(**{"prompt_id": "x", "step": 0, "token_ids": (1,), "weights": (1.0,), "kl": 1.0, **step})
    rows[0] = Sampled(trajectory=rows[0].trajectory, steps=(bad,))
    spoilt = SampleStore.create(tmp_path / "bad", {"expert": made.header["expert"]}, parts=1)
    spoilt.append(0, rows)
    assert message in refused(tmp_path, model, spoilt)


def test_empty_and_absent_samples_are_refused(tmp_path, model) -> None:
    empty = SampleStore.create(tmp_path / "empty", {}, parts=1)
    empty.append(0, [])
    assert "the samples hold no steps" in refused(tmp_path, model, empty)
    assert "holds no samples.json" in refused(tmp_path, model, tmp_path / "absent")


def test_a_folder_of_another_training_is_refused(tmp_path, model, samples, whole) -> None:
    with pytest.raises(ConfigError, match=r"holds a training with settings \{'seed': 0\}, not \{'seed': 9\}"):
        train(model, samples, whole, replace(SHORT, seed=9))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is not empty and holds no request.json" in refused(tmp_path, model, samples)


def test_modules_and_extras_that_do_not_exist_are_refused(tmp_path, model, samples) -> None:
    odd = replace(SHORT, lora=LoraSettings(targets=("quary_proj",)))
    assert "has no modules called quary_proj" in refused(tmp_path / "a", model, samples, odd)
    extra = replace(SHORT, extra={"no_such": 1})
    assert "refuses an extra" in refused(tmp_path / "b", model, samples, extra)
    clash = replace(SHORT, extra={"max_steps": 1})
    assert "max_steps has an option of its own" in refused(tmp_path / "c", model, samples, clash)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "contrasts"},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"validation": 1.0},
        {"precision": "int8"},
        {"patience": 2, "validation": 0.0},
        {"warmup": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        TrainSettings(**wrong)


def test_an_adapter_of_rank_0_is_refused() -> None:
    with pytest.raises(ConfigError):
        LoraSettings(r=0)
