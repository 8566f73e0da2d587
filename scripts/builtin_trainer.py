"""What every training script here shares: one resumable run of transformers' Trainer on one CPU, and its clock."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from builtin_optimizer import MuonAdamW
from safetensors.torch import load_file
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments


class Schedule(Protocol):
    """The numbers of a recipe that a run needs."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def decay_steps(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def batch_blocks(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def save_every(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...


class Trend(TrainerCallback):
    """Every `evaluate_every` steps one line into `trend.jsonl`; what is measured says `measure` of a subclass."""

    def __init__(self, recipe: Schedule, folder: Path) -> None:
        """Keep what is needed to evaluate between two steps."""
        self.recipe, self.path = recipe, folder / "trend.jsonl"
        self.last = time.monotonic()

    def measure(self, model: Any, state: TrainerState) -> dict[str, Any]:
        """The numbers of one line."""
        raise NotImplementedError

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Count the seconds of training into the trainer state, so that they survive a kill; evaluate."""
        now = time.monotonic()
        seconds = next((row for row in state.log_history if "train_seconds" in row), None)
        if seconds is None:
            seconds = {"train_seconds": 0.0, "step": 0}
            state.log_history.insert(0, seconds)
        seconds["train_seconds"] += now - self.last
        if state.global_step % self.recipe.evaluate_every == 0:
            row = {"step": state.global_step, **self.measure(model, state)}
            model.train()
            with self.path.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(f"\nheld out, after step {state.global_step}: {row}", flush=True)
        self.last = time.monotonic()


def steps_of(checkpoint: Path) -> int:
    """The number of steps a checkpoint folder has seen, from its name."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose last-written file is whole; unfinished ones are removed."""
    for path in sorted(folder.glob("checkpoint-*"), key=steps_of, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(path)
            continue
        return path
    return None


def last_loss(state: dict[str, Any]) -> float:
    """Mean training loss of the last ten logged rows (100 steps) of a saved trainer state."""
    losses = [float(row["loss"]) for row in state["log_history"] if "loss" in row][-10:]
    return round(sum(losses) / len(losses), 4)


def train_seconds(state: dict[str, Any]) -> float:
    """Seconds of training in a saved trainer state, over all its pieces."""
    return float(next(row["train_seconds"] for row in state["log_history"] if "train_seconds" in row))


def train(
    recipe: Schedule,
    folder: Path,
    model: PreTrainedModel,
    blocks: Any,
    trend: Trend,
    new_trainer: Callable[..., Trainer] = Trainer,
) -> Trainer:
    """Train to the last step of the recipe, from the newest complete checkpoint if there is one."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,  # without AMX a bfloat16 step is 1.7 times slower than a float32 one
        seed=recipe.seed,
        data_seed=recipe.seed,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=recipe.batch_blocks,
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": recipe.decay_steps, "decay_type": "1-sqrt"},
        warmup_steps=recipe.warmup_steps,
        max_grad_norm=recipe.clip,
        save_steps=recipe.save_every,
        save_total_limit=8,
        logging_steps=min(10, recipe.steps),
        report_to="none",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,  # a loss of its own may read what `forward` does not
    )
    trainer = new_trainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        optimizers=(MuonAdamW(model, recipe.learning_rate, recipe.weight_decay), None),
        callbacks=[trend],
    )
    resume = newest_complete(folder)
    print(
        f"{recipe.name}: {'resuming ' + resume.name if resume else 'starting'}, {recipe.steps} steps",
        flush=True,
    )
    if resume is not None and steps_of(resume) >= recipe.steps:  # the Trainer would add a step
        saved = load_file(resume / "model.safetensors")  # tied weights are stored once
        missing, unexpected = trainer.model.load_state_dict(saved, strict=False)
        assert not unexpected
        assert set(missing) <= set(trainer.model._tied_weights_keys or ())
        trainer.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


def finish(trainer: Trainer, folder: Path) -> Path:
    """Save the trained float32 weights and the facts of the run to `folder/final`; returns it."""
    trainer.save_model(str(folder / "final"))
    trainer.state.save_to_json(str(folder / "final" / "trainer_state.json"))
    assert not any(torch.isnan(p).any() for p in trainer.model.parameters())
    return folder / "final"
