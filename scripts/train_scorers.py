"""Train the scorers of `builtin:long`: `python scripts/train_scorers.py`.

Saliency of retrieval texts whose question stands at the end, then scorers trained end to end with the model frozen,
measured on held-out texts and placed in the built-in's folder. Seeded and resumable: after a kill, the same command
goes on. One CPU core, about a quarter of an hour. `--ablation` trains the variants without MSE, without ranking,
without both, and by regression alone, into the build folder; nothing is placed then.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from builtin_recipe import MODELS, ROOT
from scorer_card import place
from scorer_measure import measure
from scorer_recipe import VARIANTS, ScorerRecipe

import twinrun as tr
from twinrun.prune.marking import mark
from twinrun.prune.targets import Targets
from twinrun.prune.task_samples import TaskSamples, TaskSettings
from twinrun.prune.train import train
from twinrun.records.env import environment
from twinrun.records.write import write_json


def new_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = argparse.ArgumentParser(
        prog="train_scorers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    recipe = ScorerRecipe()
    parser.add_argument("--model", default="builtin:long", help="built-in or folder (default: %(default)s)")
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "scorer", help="folder of unfinished work"
    )
    parser.add_argument("--out", type=Path, help="folder of the finished scorers (default: the built-in's)")
    parser.add_argument("--no-place", action="store_true", help="stop after measuring")
    parser.add_argument(
        "--ablation", action="store_true", help="train and measure every variant; place nothing"
    )
    parser.add_argument(
        "--record", type=Path, default=ROOT / "benchmarks" / "results" / "scorer_ablation.json",
        help="where --ablation writes its numbers",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    for name in ("samples", "held_out", "tokens", "epochs", "seed"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(recipe, name), help="(default: %(default)s)")
    parser.add_argument("--schedule", help="layer:keep pairs (default: the recipe's)")
    return parser


def data(model: tr.Model, recipe: ScorerRecipe, split: str) -> TaskSamples:
    """Retrieval samples of a split."""
    count = recipe.samples if split == "train" else recipe.held_out
    settings = TaskSettings(
        source="retrieval", samples=count, tokens=recipe.tokens, seed=recipe.seed, digits=recipe.digits,
        begin=recipe.begin, split=split,
    )  # fmt: skip
    return TaskSamples(model, settings)


def write_ablation(
    path: Path, model: tr.Model, recipe: ScorerRecipe, found: dict[str, dict[str, Any]]
) -> None:
    """Write what every variant is worth beside the other ways to choose."""
    other = {name: rates for name, rates in found["full"]["exact"].items() if name != "learned"}
    record = {
        "schema": "twinrun.scorer-ablation/1",
        "model": model.name,
        "recipe": asdict(recipe),
        "other": other,
        "variants": {
            name: {"exact": report["exact"]["learned"], "prediction": report["prediction"]}
            for name, report in found.items()
        },
        "env": environment(),
    }
    write_json(path, record)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done."""
    args = new_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    names = ("samples", "held_out", "tokens", "epochs", "seed")
    recipe = ScorerRecipe(**{name: getattr(args, name) for name in names})
    if args.schedule:
        recipe = replace(recipe, stages=tuple(p.split(":") for p in args.schedule.split(",")))
    model = tr.load(args.model, dtype="float32")
    model.name = args.model if args.model.startswith("builtin:") else Path(args.model).name
    samples, held = data(model, recipe, "train"), data(model, recipe, "heldout")
    targets, known = (
        mark(model, part, recipe.schedule.layers, args.build / name, batch_size=recipe.batch)
        for part, name in ((samples, "targets"), (held, "targets-heldout"))
    )
    assert isinstance(targets, Targets)
    assert isinstance(known, Targets)
    found: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS if args.ablation else ("full",):
        folder = args.build / variant
        scorer = train(model, samples, folder, recipe.settings(variant), targets=targets)
        path = folder / "quality.json"
        if not path.exists():
            path.write_text(json.dumps(measure(model, scorer, held, known, recipe), indent=2) + "\n")
        found[variant] = json.loads(path.read_text())
        print(variant, json.dumps(found[variant]["exact"]["learned"]), flush=True)
    if args.ablation:
        write_ablation(args.record, model, recipe, found)
    if not (args.no_place or args.ablation):
        name = args.model.removeprefix("builtin:")
        place(args.build / "full", args.out or MODELS / name / "scorer", recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
