"""Train, measure and place one built-in checkpoint: `python scripts/train_builtin.py expert` (or `amateur`).

Seeded and resumable: after a kill, the same command continues from the newest complete checkpoint under
`build/builtin/<name>/` with exactly the blocks it has not seen. At the end it measures the saved weights and
writes the finished folder to `src/twinrun/models/builtin/<name>/` in one rename. Needs two CPU cores, no GPU
and no network; on a busy machine set OMP_WAIT_POLICY=PASSIVE, or threads that wait for each other eat the time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from builtin_data import Blocks, shared_tokenizer
from builtin_measure import skill
from builtin_model import new_model
from builtin_optimizer import MuonAdamW
from builtin_recipe import BUILD, RECIPES, Recipe
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)


class Trend(TrainerCallback):
    """Every `evaluate_every` steps: greedy answers on 200 held-out problems, one line into `trend.jsonl`."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Keep what is needed to evaluate between two steps."""
        self.recipe, self.tokenizer, self.path = recipe, tokenizer, folder / "trend.jsonl"
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Count the seconds of training into the trainer state, so that they survive a kill; evaluate."""
        now = time.monotonic()
        seconds = next((row for row in state.log_history if "train_seconds" in row), None)
        if seconds is None:
            seconds = {"train_seconds": 0.0, "step": 0}
            state.log_history.insert(0, seconds)
        seconds["train_seconds"] += now - self.last
        if state.global_step % self.recipe.evaluate_every == 0:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                report = skill(model, self.tokenizer, 200)
            model.train()
            steps = {key: value["exact"] for key, value in report["by_steps"].items()}
            row = {"step": state.global_step, "exact": report["exact"], "by_steps": steps}
            with self.path.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(f"\nheld-out problems after step {state.global_step}: {row}", flush=True)
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


def train(recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Trainer:
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
        logging_steps=10,
        report_to="none",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    blocks = Blocks(tokenizer, recipe)
    model = new_model(recipe, tokenizer)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=blocks,
        optimizers=(MuonAdamW(model, recipe.learning_rate, recipe.weight_decay), None),
        callbacks=[Trend(recipe, tokenizer, folder)],
    )
    resume = newest_complete(folder)
    print(
        f"{recipe.name}: {'resuming ' + resume.name if resume else 'starting'}, {recipe.steps} steps",
        flush=True,
    )
    if resume is not None and steps_of(resume) >= recipe.steps:  # the Trainer would add a step
        trainer.model.load_state_dict(
            Qwen3ForCausalLM.from_pretrained(resume, dtype=torch.float32).state_dict()
        )
        trainer.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 wrong request."""
    parser = argparse.ArgumentParser(
        prog="train_builtin.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("name", choices=sorted(RECIPES), help="which checkpoint")
    parser.add_argument(
        "--evaluate-only", action="store_true", help="measure the placed checkpoint, renew its card"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoints of an earlier run first")
    parser.add_argument(
        "--new-tokenizer", action="store_true", help="train the tokenizer anew (both need it then)"
    )
    parser.add_argument("--steps", type=int, help="another number of steps than the recipe's")
    parser.add_argument("--save-every", type=int, help="steps between two checkpoints")
    parser.add_argument(
        "--build", type=Path, default=BUILD, help="folder of checkpoints (default: %(default)s)"
    )
    parser.add_argument(
        "--no-place", action="store_true", help="stop after training, write no checkpoint folder"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    args = parser.parse_args(argv)
    recipe = RECIPES[args.name]
    if args.steps is not None:
        recipe = replace(recipe, steps=args.steps)
    if args.save_every is not None:
        recipe = replace(recipe, save_every=args.save_every)
    folder = args.build / recipe.name
    torch.set_num_threads(args.threads)
    if not args.evaluate_only:
        if args.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(shared_tokenizer(renew=args.new_tokenizer))
        trainer = train(recipe, folder, tokenizer)
        trainer.save_model(str(folder / "final"))
        trainer.state.save_to_json(str(folder / "final" / "trainer_state.json"))
    if args.no_place:
        return 0
    from builtin_card import place  # late: the card is not needed to train

    place(recipe, folder, measure_only=args.evaluate_only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
