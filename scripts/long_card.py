"""Write the finished `builtin:long`: ordinary folder, measured skill (`skill.json`), model card drawn from it.

Every number of the card comes from `skill.json`; `render` takes nothing else, so the two cannot differ.
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import torch
import transformers
from builtin_card import percent, put_in_place
from builtin_measure import MEASURE_SEED, text_loss
from builtin_recipe import MAX_FOLDER_BYTES
from builtin_trainer import last_loss, train_seconds
from long_data import LATE_SHARES, SHARES
from long_measure import skill
from long_recipe import LongRecipe
from transformers import AutoModelForCausalLM, AutoTokenizer

CARD = Path(__file__).with_name("long_card.md")
TEXTS = 100  # measured, of each task and length


def place(recipe: LongRecipe, folder: Path, target: Path, command: str | None, texts: int = TEXTS) -> Path:
    """Write `target` from the trained weights in `folder/final`; without a command, only its measurements anew.

    Args:
        recipe: what was trained.
        folder: the folder of the run.
        target: the placed folder; it appears whole, everything is written elsewhere first.
        command: how it was trained.
        texts: held-out texts to measure, of each task and length.
    """
    fresh = folder / "placing"
    shutil.rmtree(fresh, ignore_errors=True)
    if command is None:
        shutil.copytree(target, fresh)
        training = json.loads((target / "skill.json").read_text())["training"]
    else:
        fresh.mkdir(parents=True)
        training = write_weights(recipe, folder / "final", fresh, command)
    report = {
        "name": f"builtin:{recipe.name}",
        "licence": "apache-2.0",
        "training": training,
        **measure(fresh, training["recipe"], texts),
    }
    (fresh / "skill.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (fresh / "README.md").write_text(render(report))
    put_in_place(fresh, target, max_bytes=MAX_FOLDER_BYTES)
    print(json.dumps(report["skill"]))
    return target


def write_weights(recipe: LongRecipe, final: Path, fresh: Path, command: str) -> dict[str, Any]:
    """Save the trained weights in bfloat16 with config and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    model.config.use_cache = True  # the Trainer switches it off
    model.generation_config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(fresh)
    AutoTokenizer.from_pretrained(final).save_pretrained(str(fresh))
    state = json.loads((final / "trainer_state.json").read_text())
    return {
        "command": command,
        "recipe": asdict(recipe),
        "tokens": recipe.tokens,
        "text_share": round(1 - sum(SHARES.values()), 4),
        "late_shares": LATE_SHARES,
        "minutes": round(train_seconds(state) / 60, 1),
        "last_training_loss": last_loss(state),
        "machine": "1 CPU core, shared with other work",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def measure(folder: Path, recipe: dict[str, Any], texts: int) -> dict[str, Any]:
    """Open a checkpoint folder like anybody would and measure it, in float32 arithmetic.

    `skill` holds the rate over all tasks at the full length, and every task at half and at full length beside it.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = (recipe["length"] // 2, recipe["length"])
    tasks = skill(model, tokenizer, lengths, texts, recipe["digits"])
    return {
        "parameters": model.num_parameters(),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "vocab_tokens": len(tokenizer),
        "positions": model.config.max_position_embeddings,
        "skill": {
            "decoding": "greedy",
            "seed": MEASURE_SEED,
            **hardest(tasks, lengths[-1]),
            "by_task": tasks,
        },
        "text": text_loss(model, tokenizer),
        "measured_with": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "dtype": "float32",
        },
    }


def hardest(tasks: dict[str, dict[str, Any]], tokens: int) -> dict[str, Any]:
    """The rate of the task that is answered worst at the full length, with its name."""
    task = min(tasks, key=lambda name: tasks[name][str(tokens)]["exact"])
    return {"problems_of": f"{task} at {tokens} tokens, its worst", **tasks[task][str(tokens)]}


def render(report: dict[str, Any]) -> str:
    """The model card of a report."""
    training, found = report["training"], report["skill"]
    recipe = training["recipe"]
    rows = [
        f"| {task} | {tokens} | {percent(rate)} |"
        for task, lengths in found["by_task"].items()
        for tokens, rate in lengths.items()
    ]
    values = {
        **{key: value for key, value in (recipe | training).items() if not isinstance(value, dict)},
        "licence": report["licence"],
        "parameters": f"{report['parameters']:,}",
        "weights_bytes": f"{report['weights_bytes']:,}",
        "vocab_tokens": f"{report['vocab_tokens']:,}",
        "tokens": f"{training['tokens']:,}",
        "problems": found["problems"],
        "measure_seed": found["seed"],
        "skill_rows": "\n".join(rows),
        "text": f"{100 * training['text_share']:.0f} % of the rows are",
        "stages": ", ".join(map(str, LongRecipe(**recipe).stages)),
        "positions": f"{report['positions']:,}",
        "late_shares": ", ".join(f"{share:.0%} {task}" for task, share in training["late_shares"].items()),
    }
    return Template(CARD.read_text()).substitute(values)
