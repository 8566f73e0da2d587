"""Train `builtin:diffusion`, a small LLaDA: `python scripts/train_diffusion.py`.

The objective is that of LLaDA (Nie et al. 2025, arXiv:2502.09992, sections 2.2 and 2.3): each token that may be
masked is, with a chance drawn for its row; the loss is the cross-entropy of the masked tokens over that chance and
over the number of tokens that could have been masked. In problems only the answer may be masked.

Seeded and resumable: after a kill, the same command continues from the newest complete checkpoint under
`build/diffusion/<name>/` and gives the weights it would have given. One CPU core, no network.
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
from builtin_data import IGNORED
from builtin_recipe import MODELS, ROOT
from builtin_trainer import Trend, finish, train
from diffusion_data import END, Rows, diffusion_tokenizer
from diffusion_measure import exact_rate, held_out
from diffusion_recipe import DiffusionRecipe
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerState,
    set_seed,
)

TREND_PROBLEMS = 60


class DiffusionTrainer(Trainer):
    """The Trainer with the loss of masked diffusion; logits are computed for masked tokens only."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Mean over rows of: weight of the row times the summed cross-entropy of its masked tokens, in nats."""
        assert not return_outputs
        hidden = model.model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
        row, column = (inputs["labels"] != IGNORED).nonzero(as_tuple=True)
        logits = model.lm_head(hidden[row, column])
        nats = nn.functional.cross_entropy(logits, inputs["labels"][row, column], reduction="none")
        return (nats * inputs["weight"][row]).sum() / len(hidden)


class Answers(Trend):
    """Exact answers to a few held-out problems."""

    def __init__(self, recipe: DiffusionRecipe, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Keep the tokenizer too."""
        super().__init__(recipe, folder)
        self.tokenizer = tokenizer

    def measure(self, model: Any, state: TrainerState) -> dict[str, Any]:
        """Training loss of the last steps, rate of exact answers to problems of one step."""
        loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
        exact = exact_rate(model, self.tokenizer, held_out(TREND_PROBLEMS, 1))["exact"]
        return {"loss": None if loss is None else round(float(loss), 4), "exact_one_step": exact}


def new_model(recipe: DiffusionRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the recipe, float32, initialised from the recipe's seed."""
    set_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        is_causal=False,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = start_spread(name, recipe.width)
            if spread is not None:
                weight.normal_(std=spread)
    return model


def start_spread(name: str, width: int) -> float | None:
    """Standard deviation of the first values of a weight; None for a norm.

    What reads the hidden states keeps their size, so that attention tells tokens apart from the first step (with
    the 0.02 of Llama it is blind at this width, and copying a number takes many times longer to learn); what writes
    to them begins small, so that the token is heard beside it.
    """
    if name.endswith("norm.weight"):
        return None
    if "embed_tokens" in name:
        return 1.0
    return 0.02 if name.split(".")[-2] in ("o_proj", "down_proj", "lm_head") else width**-0.5


def new_parser() -> argparse.ArgumentParser:
    """Options of a run, then one for each field of the recipe."""
    parser = argparse.ArgumentParser(
        prog="train_diffusion.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "diffusion", help="folder of unfinished checkpoints"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the finished checkpoint (default: the built-in's)"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoints of an earlier run first")
    parser.add_argument("--no-place", action="store_true", help="stop after training, write no checkpoint")
    parser.add_argument(
        "--evaluate-only", action="store_true", help="measure the finished checkpoint, renew its card"
    )
    parser.add_argument(
        "--measure-share", type=float, default=1.0, help="part of the measurements to take (default: all)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    for option in fields(DiffusionRecipe):
        flag, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        parser.add_argument(flag, type=type(option.default), help=f"{text} (default: {option.default})")
    return parser


def run(recipe: DiffusionRecipe, folder: Path, *, fresh: bool) -> Path:
    """Train to the last step; returns the folder of the float32 weights and the tokenizer."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = diffusion_tokenizer()
    model, rows = new_model(recipe, tokenizer), Rows(tokenizer, recipe)
    print(f"{recipe.name}: {model.num_parameters():,} parameters, {recipe.tokens:,} tokens")
    trainer = train(recipe, folder, model, rows, Answers(recipe, tokenizer, folder), DiffusionTrainer)
    final = finish(trainer, folder)
    tokenizer.save_pretrained(str(final))
    return final


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 wrong request."""
    args = new_parser().parse_args(argv)
    given = {f.name: value for f in fields(DiffusionRecipe) if (value := getattr(args, f.name)) is not None}
    recipe = DiffusionRecipe(**given)
    torch.set_num_threads(args.threads)
    folder, target = args.build / recipe.name, args.out or MODELS / recipe.name
    if not args.evaluate_only:
        run(recipe, folder, fresh=args.fresh)
    if args.no_place:
        return 0
    from diffusion_card import place  # late: the card is not needed to train

    changed = [
        f"--{f.name.replace('_', '-')} {getattr(recipe, f.name)}"
        for f in fields(DiffusionRecipe)
        if getattr(recipe, f.name) != f.default
    ]
    command = " ".join(["python scripts/train_diffusion.py", *changed])
    place(recipe, folder, target, None if args.evaluate_only else command, args.measure_share)
    return 0


if __name__ == "__main__":
    sys.exit(main())
