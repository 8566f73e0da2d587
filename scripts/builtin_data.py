"""Tokenizer and training blocks of the built-in checkpoints.

Block `i` depends on `(seed, i)` only: a map-style data set without state, so a resumed run sees exactly the
blocks it has not seen. A block holds word problems in chat form, packed one after another, or worked lines
without their stories (drill), or a window of Python documentation.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from builtin_recipe import (
    BLOCK_TOKENS,
    BUILD,
    DRILL_BLOCK_SHARE,
    LONG_BLOCK_TOKENS,
    LONG_EVERY,
    MODELS,
    SYSTEM_SHARE,
    SYSTEM_TEXTS,
    TEXT_BLOCK_SHARE,
    VOCAB_TOKENS,
    Recipe,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from twinrun.tasks.arithmetic import Problem, problem
from twinrun.tasks.texts import python_docs

SPECIALS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")
IGNORED = -100
PROBLEMS_PER_BLOCK = 24  # more than enough for 512 tokens; a drill block of that length uses about 14
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception("roles are system, user and assistant, got " + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE from training problems and training documentation; each digit is a token of its own."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_TOKENS,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    problems = [problem(i, seed=1) for i in range(4000)]
    core.train_from_iterator(
        [f"{p.question}\n{p.answer_text}" for p in problems] + python_docs("train"), trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def shared_tokenizer(*, renew: bool = False) -> Path:
    """Folder of the tokenizer both checkpoints share; a checkpoint already in place decides unless `renew`."""
    folder = BUILD / "tokenizer"
    placed = [path for name in ("expert", "amateur") if (path := MODELS / name / "tokenizer.json").exists()]
    if renew:
        shutil.rmtree(folder, ignore_errors=True)
    elif placed and not folder.exists():
        folder.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy2(placed[0].parent / name, folder / name)
    if not (folder / "tokenizer.json").exists():
        train_tokenizer().save_pretrained(str(folder))
    return folder


class Blocks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Endless training blocks, all of one batch equally long, random access, no state."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, size: int = 10_000_000) -> None:
        """Encode the documentation once; `size` only has to be larger than any run."""
        self.core: Any = tokenizer.backend_tokenizer
        self.seed, self.batch, self.size = recipe.seed, recipe.batch_blocks, size
        self.ids = {name: self.core.token_to_id(name) for name in SPECIALS}
        self.text: list[int] = []
        for encoding in self.core.encode_batch(python_docs("train")):
            self.text += [*encoding.ids, self.ids["<|endoftext|>"]]

    def __len__(self) -> int:
        """Number of blocks."""
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Block `index`: `input_ids` and `labels`, both ``[256]`` or ``[512]`` int64."""
        length = BLOCK_TOKENS if index // self.batch % LONG_EVERY else LONG_BLOCK_TOKENS
        rng = Random(f"twinrun/block/{self.seed}/{index}")
        kind = rng.random()
        if kind < TEXT_BLOCK_SHARE:
            start = rng.randrange(len(self.text) - length)
            ids = self.text[start : start + length]
            return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
        ids, labels = [], []
        for j in range(PROBLEMS_PER_BLOCK):
            if len(ids) >= length:
                break
            item = problem(index * PROBLEMS_PER_BLOCK + j, seed=self.seed)
            parts = self.drill(item) if kind < TEXT_BLOCK_SHARE + DRILL_BLOCK_SHARE else self.turn(item, rng)
            for given, wanted in parts:
                ids += given + wanted
                labels += [IGNORED] * len(given) + wanted
        return {"input_ids": torch.tensor(ids[:length]), "labels": torch.tensor(labels[:length])}

    def drill(self, item: Problem) -> list[tuple[list[int], list[int]]]:
        """The worked lines of a problem: ids up to the equals sign, ids of the result with its line end."""
        lines = [line.split(" = ") for line in item.answer_text.splitlines()[:-1]]
        return [
            (self.core.encode(f"{left} =").ids, self.core.encode(f" {result}\n").ids)
            for left, result in lines
        ]

    def turn(self, item: Problem, rng: Random) -> list[tuple[list[int], list[int]]]:
        """One problem in chat form: ids up to the answer, ids of the answer with its end."""
        end = [self.ids["<|end|>"]]
        asked = [self.ids["<|user|>"], *self.core.encode(item.question).ids, *end, self.ids["<|assistant|>"]]
        if rng.random() < SYSTEM_SHARE:
            system = self.core.encode(rng.choice(SYSTEM_TEXTS)).ids
            asked = [self.ids["<|system|>"], *system, *end, *asked]
        return [(asked, [*self.core.encode(item.answer_text).ids, *end])]
