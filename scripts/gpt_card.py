"""Write a finished GPT: ordinary folder, measured loss (`skill.json`), model card drawn from it.

Every number of the card comes from `skill.json`; `render` takes nothing else, so the two cannot differ.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import torch
import transformers
from builtin_card import put_in_place
from builtin_measure import text_loss
from builtin_recipe import MAX_FOLDER_BYTES, MODELS
from builtin_trainer import last_loss, train_seconds
from gpt_data import START, Corpus
from gpt_recipe import GPTRecipe
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from twinrun.models.gpt import GPTForCausalLM

CARD = Path(__file__).with_name("gpt_card.md")
SLICE_EVERY = 25
SAMPLE_SEED, SAMPLE_TOKENS, SAMPLE_TEMPERATURE, PROMPT_CHARS = 7, 400, 0.7, 24


def place(recipe: GPTRecipe, corpus: Corpus, folder: Path, target: Path, command: str | None) -> Path:
    """Write `target` from the trained weights in `folder/final`; without a command, only its measurements anew.

    Returns:
        The placed folder. It appears whole: everything is written elsewhere first.
    """
    fresh, is_builtin = folder / "placing", target.parent == MODELS
    shutil.rmtree(fresh, ignore_errors=True)
    if command is None:
        shutil.copytree(target, fresh)
        before = json.loads((target / "skill.json").read_text())
        name, licence, training = before["name"], before["licence"], before["training"]
    else:
        fresh.mkdir(parents=True)
        name, licence = (
            (f"builtin:{recipe.name}", "apache-2.0") if is_builtin else (f"{target.name}", "other")
        )
        training = write_weights(recipe, folder / "final", fresh, command)
    report = {"name": name, "licence": licence, "training": training, **measure(fresh, corpus.heldout)}
    (fresh / "skill.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (fresh / "README.md").write_text(render(report))
    put_in_place(fresh, target, max_bytes=MAX_FOLDER_BYTES if is_builtin else None)
    print(json.dumps(report["text"]))
    return target


def write_weights(recipe: GPTRecipe, final: Path, fresh: Path, command: str) -> dict[str, Any]:
    """Save the trained weights in bfloat16 with config and tokenizer; return the facts of the training."""
    model = GPTForCausalLM.from_pretrained(final, dtype=torch.float32)
    model.config.use_cache = True  # the Trainer switches it off
    model.generation_config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(fresh)
    AutoTokenizer.from_pretrained(final).save_pretrained(str(fresh))
    state = json.loads((final / "trainer_state.json").read_text())
    return {
        "command": command,
        "data": "the documentation of the Python installation (`twinrun.tasks.texts`), training split"
        if "--text" not in command
        else "the first 90 % of a text file",
        "recipe": asdict(recipe),
        "tokens": recipe.tokens,
        "minutes": round(train_seconds(state) / 60, 1),
        "last_training_loss": last_loss(state),
        "machine": "1 CPU core, shared with other work",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def measure(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Open a checkpoint folder like anybody would and measure it, in float32 arithmetic."""
    model = GPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    window = model.config.block_size
    part = text_loss(model, tokenizer, window, texts[::SLICE_EVERY])
    return {
        "parameters": model.num_parameters(),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "vocab_tokens": len(tokenizer),
        "text": {"window": window, **text_loss(model, tokenizer, window, texts)},
        "slice": {"every": SLICE_EVERY, "window": window, **part},
        "sample": sample(model, tokenizer, beginning(texts)),
        "measured_with": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "dtype": "float32",
        },
    }


def beginning(texts: Sequence[str]) -> str:
    """How the first text begins whose first line is long enough to be prose."""
    return next((t[:PROMPT_CHARS] for t in texts if "\n" not in t[:PROMPT_CHARS]), texts[0][:PROMPT_CHARS])


def sample(model: GPTForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> dict[str, Any]:
    """A continuation of `prompt`, drawn with a fixed seed."""
    room = model.config.block_size - len(prompt.encode()) - 1
    ids = tokenizer(START + prompt, return_tensors="pt")
    with torch.random.fork_rng():
        torch.manual_seed(SAMPLE_SEED)
        out: Any = model.generate(
            **ids, max_new_tokens=min(SAMPLE_TOKENS, room), do_sample=True, temperature=SAMPLE_TEMPERATURE, top_k=0
        )  # fmt: skip
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"prompt": prompt, "text": text, "seed": SAMPLE_SEED, "temperature": SAMPLE_TEMPERATURE}


def quoted(text: str) -> str:
    """Text of a model as an indented block: nothing in it can be read as Markdown."""
    lines = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text).split("\n")
    return "\n".join(f"    {line}".rstrip() for line in lines)


def render(report: dict[str, Any]) -> str:
    """The model card of a report."""
    training, text, drawn = report["training"], report["text"], report["sample"]
    recipe = training["recipe"]
    values = {
        **{key: value for key, value in (recipe | training).items() if not isinstance(value, dict)},
        "name": report["name"],
        "licence": report["licence"],
        "source": report["name"] if report["name"].startswith("builtin:") else "path/to/this/folder",
        "parameters": f"{report['parameters']:,}",
        "weights_bytes": f"{report['weights_bytes']:,}",
        "vocab_tokens": f"{report['vocab_tokens']:,}",
        "tokens": f"{training['tokens']:,}",
        "unit": {"byte": "byte", "char": "character"}[recipe["level"]],
        "nats_per_token": f"{text['nats_per_token']:.3f}",
        "bits_per_byte": f"{text['bits_per_byte']:.3f}",
        "text_tokens": f"{text['tokens']:,}",
        "text_bytes": f"{text['bytes']:,}",
        "cut": text["window"] - 1,
        "prompt": quoted(drawn["prompt"]),
        "sample": quoted(drawn["text"]),
        "sample_seed": drawn["seed"],
        "temperature": drawn["temperature"],
        "quarter": recipe["block"] // 4,
        "half": recipe["block"] // 2,
        "measure_python": report["measured_with"]["python"],
    }
    return Template(CARD.read_text()).substitute(values)
