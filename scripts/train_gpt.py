"""Train a small GPT from scratch on a text: `python scripts/train_gpt.py` makes `builtin:gpt`.

Without --text it learns the documentation of this Python installation and is placed in
`src/twinrun/models/builtin/gpt/`. With --text FILE it learns that file and is written to `build/gpt/<name>/checkpoint`:
an ordinary checkpoint folder with a model card, for `twinrun.load` or AutoModelForCausalLM.

Seeded and resumable: after a kill, the same command continues from the newest complete checkpoint under
`build/gpt/<name>/` and gives the weights it would have given. One CPU core, no network.

  python scripts/train_gpt.py --text input.txt --steps 300
  python scripts/train_gpt.py --text input.txt --level char --layers 2 --width 128 --block 256
  python scripts/train_gpt.py --evaluate-only
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from builtin_measure import text_loss
from builtin_recipe import MODELS, ROOT
from builtin_trainer import Trend, finish, train
from gpt_data import START, Corpus, Windows, new_tokenizer, read_corpus
from gpt_recipe import GPTRecipe, scaled
from transformers import PreTrainedTokenizerFast, TrainerState, set_seed

from twinrun.errors import ConfigError, TwinrunError
from twinrun.models.gpt import GPTConfig, GPTForCausalLM

TREND_TEXTS = 40


class Losses(Trend):
    """Training loss of the last steps beside the loss on a few held-out texts."""

    def __init__(self, recipe: GPTRecipe, tokenizer: PreTrainedTokenizerFast, folder: Path, texts: list[str]):
        """Keep the first held-out texts."""
        super().__init__(recipe, folder)
        self.tokenizer, self.window, self.texts = tokenizer, recipe.block, texts[:TREND_TEXTS]

    def measure(self, model: Any, state: TrainerState) -> dict[str, Any]:
        """Nats a token for both, bits a byte for the second."""
        loss = text_loss(model, self.tokenizer, self.window, self.texts)
        training = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
        return {
            "train_nats_per_token": None if training is None else round(float(training), 4),
            "validation_nats_per_token": round(loss["nats_per_token"], 4),
            "validation_bits_per_byte": round(loss["bits_per_byte"], 4),
        }


def new_model(recipe: GPTRecipe, tokenizer: PreTrainedTokenizerFast) -> GPTForCausalLM:
    """An untrained model of the recipe, float32, initialised from the recipe's seed."""
    set_seed(recipe.seed)
    start = tokenizer.convert_tokens_to_ids(START)
    config = GPTConfig(
        vocab_size=len(tokenizer),
        block_size=recipe.block,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        n_embd=recipe.width,
        n_inner=recipe.feed_forward,
        norm=recipe.norm,
        bos_token_id=start,
        eos_token_id=start,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPTForCausalLM(config)


def new_parser() -> argparse.ArgumentParser:
    """Options of a run, then one for each field of the recipe."""
    parser = argparse.ArgumentParser(
        prog="train_gpt.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--text", type=Path, help="UTF-8 file to learn (default: Python's documentation)")
    parser.add_argument("--out", type=Path, help="folder of the finished checkpoint")
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "gpt", help="folder of unfinished ones"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoints of an earlier run first")
    parser.add_argument("--no-place", action="store_true", help="stop after training, write no checkpoint")
    parser.add_argument(
        "--evaluate-only", action="store_true", help="measure the finished checkpoint, renew its card"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    for option in fields(GPTRecipe):
        flag, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        parser.add_argument(flag, type=type(option.default), help=f"{text} (default: {option.default})")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 wrong request."""
    args = new_parser().parse_args(argv)
    try:
        return order(args)
    except TwinrunError as error:
        print(f"train_gpt: {error}", file=sys.stderr)
        return error.exit_code


def order(args: argparse.Namespace) -> int:
    """Train, measure and place what the options ask for."""
    given = {f.name: value for f in fields(GPTRecipe) if (value := getattr(args, f.name)) is not None}
    if args.text is not None:
        given.setdefault("name", args.text.stem)
    recipe = GPTRecipe(**(scaled(given["steps"]) if "steps" in given else {}) | given)
    folder = args.build / recipe.name
    target = args.out or (MODELS / recipe.name if args.text is None else folder / "checkpoint")
    if args.threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    corpus = read_corpus(args.text)
    if not args.evaluate_only:
        run(recipe, corpus, folder, fresh=args.fresh)
    if args.no_place:
        return 0
    from gpt_card import place  # late: the card is not needed to train

    command = ["python scripts/train_gpt.py", *(["--text", args.text.name] if args.text else [])]
    for option in fields(GPTRecipe):
        if getattr(recipe, option.name) != option.default and option.name != "name":
            command += [f"--{option.name.replace('_', '-')}", str(getattr(recipe, option.name))]
    place(recipe, corpus, folder, target, " ".join(command) if not args.evaluate_only else None)
    return 0


def run(recipe: GPTRecipe, corpus: Corpus, folder: Path, *, fresh: bool) -> Path:
    """Train to the last step; returns the folder of the float32 weights and the tokenizer."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = new_tokenizer(recipe, corpus)
    model, windows = new_model(recipe, tokenizer), Windows(tokenizer, corpus.train, recipe)
    trend = Losses(recipe, tokenizer, folder, corpus.heldout)
    print(f"{recipe.name}: {model.num_parameters():,} parameters, {len(windows.row):,} tokens of text")
    final = finish(train(recipe, folder, model, windows, trend), folder)
    tokenizer.save_pretrained(str(final))
    return final


if __name__ == "__main__":
    sys.exit(main())
