"""Train `builtin:long`, a small causal LM that finds things in long texts: `python scripts/train_long.py`.

Five stages, each with rows twice as long as the one before. Seeded and resumable: after a kill, the same command
continues from the newest complete checkpoint under `build/long/<name>/` and gives the weights it would have given.
One CPU core, no network.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from builtin_recipe import MODELS, ROOT
from builtin_trainer import Trend, finish, train
from long_data import END, START, Batches, long_tokenizer
from long_measure import TASKS, held_out, rate
from long_recipe import LongRecipe
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerState,
    set_seed,
)

TREND_TEXTS = 16


class Answers(Trend):
    """Exact answers on a few held-out texts as long as the rows of the present stage."""

    def __init__(self, recipe: LongRecipe, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Keep the tokenizer too."""
        super().__init__(recipe, folder)
        self.tokenizer, self.long = tokenizer, recipe

    def measure(self, model: Any, state: TrainerState) -> dict[str, Any]:
        """Training loss of the last steps, and the rate of exact answers of each task."""
        loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
        tokens = max(self.long.row(step) for step in range(state.global_step))
        room = max(tokens, 192)  # a chain of four steps needs it
        rates = {
            task: rate(
                model, self.tokenizer, held_out(self.tokenizer, task, room, TREND_TEXTS, self.long.digits)
            )
            for task in TASKS
        }
        exact = {task: round(found["exact"], 3) for task, found in rates.items()}
        return {"loss": None if loss is None else round(float(loss), 4), "tokens": room, "exact": exact}


def new_model(recipe: LongRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model of the recipe, float32, initialised from the recipe's seed."""
    set_seed(recipe.seed)
    end = tokenizer.convert_tokens_to_ids(END)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=2 * recipe.length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = [end, tokenizer.convert_tokens_to_ids(START)]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def whole_batch(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """An item of the data is a batch already."""
    return items[0]


def new_parser() -> argparse.ArgumentParser:
    """Options of a run, then one for each field of the recipe."""
    parser = argparse.ArgumentParser(
        prog="train_long.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "long", help="folder of unfinished checkpoints"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the finished checkpoint (default: the built-in's)"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoints of an earlier run first")
    parser.add_argument("--no-place", action="store_true", help="stop after training, write no checkpoint")
    parser.add_argument(
        "--evaluate-only", action="store_true", help="measure the finished checkpoint, renew its card"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    for option in fields(LongRecipe):
        flag, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        parser.add_argument(flag, type=type(option.default), help=f"{text} (default: {option.default})")
    return parser


def run(recipe: LongRecipe, folder: Path, *, fresh: bool) -> Path:
    """Train to the last step; returns the folder of the float32 weights and the tokenizer."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "tokenizer"
    if not (kept / "tokenizer.json").exists():
        long_tokenizer().save_pretrained(str(kept))
    tokenizer = AutoTokenizer.from_pretrained(kept)
    model, batches = new_model(recipe, tokenizer), Batches(tokenizer, recipe)
    print(f"{recipe.name}: {model.num_parameters():,} parameters, {recipe.tokens:,} tokens")
    kind = partial(Trainer, data_collator=whole_batch)
    final = finish(train(recipe, folder, model, batches, Answers(recipe, tokenizer, folder), kind), folder)
    tokenizer.save_pretrained(str(final))
    return final


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 wrong request."""
    args = new_parser().parse_args(argv)
    given = {f.name: value for f in fields(LongRecipe) if (value := getattr(args, f.name)) is not None}
    recipe = LongRecipe(**given)
    torch.set_num_threads(args.threads)
    folder, target = args.build / recipe.name, args.out or MODELS / recipe.name
    if not args.evaluate_only:
        run(recipe, folder, fresh=args.fresh)
    if args.no_place:
        return 0
    from long_card import place  # late: the card is not needed to train

    changed = [
        f"--{f.name.replace('_', '-')} {getattr(recipe, f.name)}"
        for f in fields(LongRecipe)
        if getattr(recipe, f.name) != f.default
    ]
    command = " ".join(["python scripts/train_long.py", *changed])
    place(recipe, folder, target, None if args.evaluate_only else command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
