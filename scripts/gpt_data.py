"""Text, tokenizer and training windows of the small GPT.

Window `i` depends on `(seed, i)` only, so a resumed run sees exactly the windows it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from gpt_recipe import GPTRecipe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from twinrun.errors import ConfigError
from twinrun.tasks.texts import python_docs

START, PAD = "<|endoftext|>", "<|pad|>"
HELD_OUT_SHARE = 0.1  # of a text file: its end
BEGINNING_SHARE = 0.25  # of the windows begin where a text begins, at position 0
PIECE_CHARS = 1000


class Corpus(NamedTuple):
    """Texts to train on, and texts to measure on."""

    train: list[str]
    heldout: list[str]


def read_corpus(path: Path | None) -> Corpus:
    """The documentation of this Python installation, or a file: its first 90 % and pieces of the rest."""
    if path is None:
        return Corpus(python_docs("train"), python_docs("heldout"))
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path} cannot be read as UTF-8 text: {error}") from None
    cut = int(len(text) * (1 - HELD_OUT_SHARE))
    rest = text[cut:]
    return Corpus([text[:cut]], [rest[i : i + PIECE_CHARS] for i in range(0, len(rest), PIECE_CHARS)])


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary, in the order of the bytes.

    A byte that is a visible Latin-1 character stands for itself; the others take the code points from 256 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


def new_tokenizer(recipe: GPTRecipe, corpus: Corpus) -> PreTrainedTokenizerFast:
    """One token a byte, its id the byte itself, or one token a character of the text (an unseen one is lost)."""
    if recipe.level == "byte":
        letters = byte_letters()
        core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        unknown = None
    else:
        letters, unknown = sorted(set("".join(corpus.train))), "<|unknown|>"
        table = {c: i for i, c in enumerate([*letters, unknown])}
        core = Tokenizer(models.BPE(vocab=table, merges=[], unk_token=unknown))
        core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=START,
        eos_token=START,
        pad_token=PAD,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
        model_max_length=recipe.block,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def encode_all(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """All texts in one row, each behind a start token; and where each begins."""
    start, ids, begins = tokenizer.convert_tokens_to_ids(START), [], []
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(texts)):
        begins.append(len(ids))
        ids += [start, *encoding.ids]
    return ids, begins


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Endless training windows, all of one batch equally long, random access, no state."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], recipe: GPTRecipe) -> None:
        """Encode the texts once."""
        row, begins = encode_all(tokenizer, texts)
        self.recipe, self.row, self.begins = recipe, torch.tensor(row), begins
        if len(row) <= recipe.block:
            raise ConfigError(
                f"the text has {len(row)} tokens, fewer than one window of {recipe.block}; "
                "lower --block or give more text"
            )

    def __len__(self) -> int:
        """Number of windows, larger than any run."""
        return 100_000_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Window `index`: `input_ids`, `labels` and `position_ids`, each ``[tokens]`` int64.

        A short window stands at a random place inside the block, so that every position is learned.
        """
        recipe = self.recipe
        length = recipe.window(index // recipe.batch_blocks)
        rng = Random(f"twinrun/gpt/{recipe.seed}/{index}")
        last = len(self.row) - length
        start, offset = rng.randrange(last + 1), rng.randrange(recipe.block - length + 1)
        if rng.random() < BEGINNING_SHARE:
            start, offset = min(rng.choice(self.begins), last), 0
        ids = self.row[start : start + length]
        return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(length) + offset}
