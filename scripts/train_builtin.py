"""Train, measure and place one built-in checkpoint: `python scripts/train_builtin.py expert` (or `amateur`).

Seeded and resumable: after a kill, the same command continues from the newest complete checkpoint under
`build/builtin/<name>/` with exactly the blocks it has not seen. At the end it measures the saved weights and
writes the finished folder to `src/twinrun/models/builtin/<name>/` in one rename. Needs two CPU cores, no GPU
and no network; on a busy machine set OMP_WAIT_POLICY=PASSIVE, or threads that wait for each other eat the time.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from builtin_data import Blocks, shared_tokenizer
from builtin_measure import skill
from builtin_model import new_model
from builtin_recipe import BUILD, RECIPES, Recipe
from builtin_trainer import Trend, finish, train
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TrainerState


class Answers(Trend):
    """Greedy answers on 200 held-out problems."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Keep the tokenizer too."""
        super().__init__(recipe, folder)
        self.tokenizer = tokenizer

    def measure(self, model: Any, state: TrainerState) -> dict[str, Any]:
        """Rate of exact answers, over all and by the number of steps."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            report = skill(model, self.tokenizer, 200)
        steps = {key: value["exact"] for key, value in report["by_steps"].items()}
        return {"exact": report["exact"], "by_steps": steps}


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
        model, blocks = new_model(recipe, tokenizer), Blocks(tokenizer, recipe)
        finish(train(recipe, folder, model, blocks, Answers(recipe, tokenizer, folder)), folder)
    if args.no_place:
        return 0
    from builtin_card import place  # late: the card is not needed to train

    place(recipe, folder, measure_only=args.evaluate_only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
