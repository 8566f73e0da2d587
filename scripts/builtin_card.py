"""Place a finished checkpoint: ordinary folder, measured skill (`skill.json`), model card drawn from it.

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

from builtin_recipe import BUILD, MAX_FOLDER_BYTES, MODELS, RECIPES, Recipe

HELD_OUT_PROBLEMS = 1000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CARD = Path(__file__).with_name("builtin_card.md")


def place(recipe: Recipe, folder: Path, *, measure_only: bool) -> Path:
    """Write `models/builtin/<name>/`: from the trained weights in `folder`, or only its measurements anew.

    Returns:
        The placed folder. It appears whole: everything is written beside it first and renamed.
    """
    target, fresh = MODELS / recipe.name, BUILD / f"placing-{recipe.name}"
    shutil.rmtree(fresh, ignore_errors=True)
    if measure_only:
        shutil.copytree(target, fresh)
        training = json.loads((target / "skill.json").read_text())["training"]
    else:
        fresh.mkdir(parents=True)
        training = write_weights(recipe, folder / "final", fresh)
    report = {"name": recipe.name, "licence": "Apache-2.0", "training": training, **measure(fresh)}
    (fresh / "skill.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (fresh / "README.md").write_text(render(report))
    put_in_place(fresh, target, max_bytes=MAX_FOLDER_BYTES)
    print(json.dumps(report["skill"]), json.dumps(report["text"]), sep="\n")
    return target


def put_in_place(fresh: Path, target: Path, *, max_bytes: int | None) -> None:
    """Rename a finished folder to `target`; what stood there is kept as `replaced-<name>` beside `fresh`."""
    for path in fresh.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in fresh.iterdir())
    if max_bytes is not None and size > max_bytes:
        raise SystemExit(f"{target.name}: {size} bytes, the limit is {max_bytes}; {fresh} was not placed")
    old = fresh.with_name(f"replaced-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh.rename(target)
    print(f"{target.name}: {size} bytes in {target}")


def write_weights(recipe: Recipe, final: Path, fresh: Path) -> dict[str, Any]:
    """Save the trained weights in bfloat16 with config and tokenizer; return the facts of the training."""
    import torch
    import transformers
    from builtin_data import shared_tokenizer
    from builtin_trainer import last_loss, train_seconds

    model = transformers.AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(fresh)
    for name in TOKENIZER_FILES:
        shutil.copyfile(shared_tokenizer() / name, fresh / name)
    state = json.loads((final / "trainer_state.json").read_text())
    other_length = "" if recipe.steps == RECIPES[recipe.name].steps else f" --steps {recipe.steps}"
    history = final.parent / "history.txt"
    return {
        "command": f"python scripts/train_builtin.py {recipe.name}{other_length}",
        "recipe": asdict(recipe),
        "tokens": recipe.tokens,
        "minutes": round(train_seconds(state) / 60, 1),
        "last_training_loss": last_loss(state),
        "history": history.read_text().strip() if history.exists() else "trained in one go by the command",
        "machine": "2 CPU cores, shared with other work",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def measure(folder: Path) -> dict[str, Any]:
    """Open a checkpoint folder like anybody would and measure it, in float32 arithmetic."""
    import torch
    from builtin_measure import MEASURE_SEED, skill, text_loss
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {
        "parameters": model.num_parameters(),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "vocab_tokens": len(tokenizer),
        "skill": {"decoding": "greedy", "seed": MEASURE_SEED, **skill(model, tokenizer, HELD_OUT_PROBLEMS)},
        "text": text_loss(model, tokenizer),
        "measured_with": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "dtype": "float32",
        },
    }


def percent(rate: dict[str, Any]) -> str:
    """A rate with its interval and counts, as the card shows it."""
    low, high = rate["interval_95"]
    counts = f"{rate['hits']} of {rate['problems']}"
    return f"{100 * rate['exact']:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | {counts}"


def render(report: dict[str, Any]) -> str:
    """The model card of a report."""
    training, recipe = report["training"], report["training"]["recipe"]
    skill, text = report["skill"], report["text"]
    rows = [f"| all | {percent(skill)} |"]
    rows += [f"| {steps} steps | {percent(rate)} |" for steps, rate in skill["by_steps"].items()]
    values = {
        **{key: value for key, value in recipe.items() if not isinstance(value, dict)},
        **{key: value for key, value in training.items() if not isinstance(value, dict)},
        "parameters": f"{report['parameters']:,}",
        "weights_bytes": f"{report['weights_bytes']:,}",
        "vocab_tokens": f"{report['vocab_tokens']:,}",
        "tokens": f"{training['tokens']:,}",
        "licence": report["licence"],
        "problems": f"{skill['problems']:,}",
        "skill_rows": "\n".join(rows),
        "nats_per_token": f"{text['nats_per_token']:.3f}",
        "bits_per_byte": f"{text['bits_per_byte']:.3f}",
        "text_tokens": f"{text['tokens']:,}",
        "text_bytes": f"{text['bytes']:,}",
        "measure_python": report["measured_with"]["python"],
        "measure_seed": skill["seed"],
    }
    return Template(CARD.read_text()).substitute(values)
