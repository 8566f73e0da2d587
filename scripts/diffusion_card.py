"""Write the finished `builtin:diffusion`: a LLaDA folder, measured skill (`skill.json`), model card drawn from it.

Every number of the card comes from `skill.json`; `render` takes nothing else, so the two cannot differ.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import torch
import transformers
from builtin_card import percent, put_in_place
from builtin_measure import MEASURE_SEED
from builtin_recipe import MAX_FOLDER_BYTES
from builtin_trainer import last_loss, train_seconds
from diffusion_bound import DRAWS, bounds
from diffusion_data import MASK, PHASES
from diffusion_measure import BLOCK, canvas_tokens, exact_rate, held_out
from diffusion_recipe import DiffusionRecipe
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from twinrun.models.llada import to_llada_fields, to_llada_names
from twinrun.models.translate import read_llada

CARD = Path(__file__).with_name("diffusion_card.md")
PROBLEMS = {1: 400, 2: 60, 3: 40, 4: 40, 5: 40}  # measured, by their steps
CANVASES = 100


def place(
    recipe: DiffusionRecipe, folder: Path, target: Path, command: str | None, share: float = 1.0
) -> Path:
    """Write `target` from the trained weights in `folder/final`; without a command, only its measurements anew.

    Args:
        recipe: what was trained.
        folder: the folder of the run.
        target: the placed folder; it appears whole, everything is written elsewhere first.
        command: how it was trained.
        share: part of the problems and canvases to measure.
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
        "kind": "masked diffusion",
        "licence": "apache-2.0",
        "training": training,
        **measure(fresh, share),
    }
    (fresh / "skill.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (fresh / "README.md").write_text(render(report))
    put_in_place(fresh, target, max_bytes=MAX_FOLDER_BYTES)
    print(json.dumps(report["skill"]), json.dumps(report["bounds"]), sep="\n")
    return target


def write_weights(recipe: DiffusionRecipe, final: Path, fresh: Path, command: str) -> dict[str, Any]:
    """Save the trained weights in bfloat16 under LLaDA's names, with config and tokenizer."""
    model = LlamaForCausalLM.from_pretrained(final, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(final)
    weights = {name: w.to(torch.bfloat16) for name, w in model.named_parameters()}  # a tied head comes once
    names = to_llada_names(weights)
    save_file(
        {names[k]: w.detach().contiguous() for k, w in weights.items()},
        fresh / "model.safetensors",
        {"format": "pt"},
    )
    fields = to_llada_fields(model.config, tokenizer.convert_tokens_to_ids(MASK))
    (fresh / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(str(fresh))
    state = json.loads((final / "trainer_state.json").read_text())
    return {
        "command": command,
        "recipe": asdict(recipe),
        "tokens": recipe.tokens,
        "phases": [
            {"from": at, "drill": drill, "small": small, "text": text}
            for at, (drill, small, text) in PHASES.items()
        ],
        "minutes": round(train_seconds(state) / 60, 1),
        "last_training_loss": last_loss(state),
        "machine": "1 CPU core, shared with other work",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def measure(folder: Path, share: float) -> dict[str, Any]:
    """Open a placed folder like anybody would and measure it, in float32 arithmetic."""
    model, tokenizer = read_llada(folder), AutoTokenizer.from_pretrained(folder)
    counts = {steps: math.ceil(count * share) for steps, count in PROBLEMS.items()}
    rates = {str(n): exact_rate(model, tokenizer, held_out(count, n)) for n, count in counts.items()}
    found = bounds(model, tokenizer, math.ceil(CANVASES * share))
    text = found["text"]
    nats = text["model"]["nats_per_token"] * text["texts"] * text["window"]
    return {
        "parameters": model.num_parameters(),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "vocab_tokens": len(tokenizer),
        "mask_token_id": model.config.mask_token_id,
        "eos_token_id": model.config.eos_token_id,
        "skill": {
            "decoding": "plain, one token per forward, low-confidence remasking",
            "block": BLOCK,
            "canvas_by_steps": {str(n): canvas_tokens(n) for n in counts},
            "seed": MEASURE_SEED,
            "problems_of": "one step",
            **rates["1"],
            "by_steps": rates,
        },
        "bounds": {**found, "draws": DRAWS},
        "text": {
            "nats_per_token": text["model"]["nats_per_token"],
            "bits_per_byte": nats / math.log(2) / text["bytes"],
        },
        "measured_with": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "dtype": "float32",
        },
    }


def nats(loss: dict[str, float]) -> str:
    """A loss with its interval, as the card shows it."""
    return f"{loss['nats_per_token']:.3f} ({loss['low']:.3f} to {loss['high']:.3f})"


def shares(phases: list[dict[str, Any]]) -> str:
    """How many rows hold what, phase by phase, as the card says it."""
    said = [
        f"from step {p['from']} {100 * p['drill']:.0f} % ({100 * p['small']:.0f} % of them small) and "
        f"{100 * p['text']:.0f} %"
        for p in phases
    ]
    return ", ".join(said)


def render(report: dict[str, Any]) -> str:
    """The model card of a report."""
    training, skill, found = report["training"], report["skill"], report["bounds"]
    plural = {"1": "1 step"}
    rows = [f"| {plural.get(n, f'{n} steps')} | {percent(rate)} |" for n, rate in skill["by_steps"].items()]
    kinds = {f"answers of {plural.get(n, f'{n} steps')}": row for n, row in found["answers"].items()}
    kinds[f"documentation, {found['text']['window']} tokens"] = found["text"]
    losses = [f"| {kind} | {nats(row['model'])} | {nats(row['unigram'])} |" for kind, row in kinds.items()]
    values = {
        **{
            key: value
            for key, value in (training["recipe"] | training).items()
            if not isinstance(value, dict)
        },
        "licence": report["licence"],
        "parameters": f"{report['parameters']:,}",
        "weights_bytes": f"{report['weights_bytes']:,}",
        "mask_token_id": report["mask_token_id"],
        "eos_token_id": report["eos_token_id"],
        "tokens": f"{training['tokens']:,}",
        "block": skill["block"],
        "canvases": ", ".join(str(room) for room in skill["canvas_by_steps"].values()),
        "measure_seed": skill["seed"],
        "skill_rows": "\n".join(rows),
        "bound_rows": "\n".join(losses),
        "draws": found["draws"],
        "shares": shares(training["phases"]),
        "measure_python": report["measured_with"]["python"],
    }
    return Template(CARD.read_text()).substitute(values)
