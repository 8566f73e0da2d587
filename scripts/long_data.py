"""Tokenizer and training rows of `builtin:long`.

Batch `i` depends on `(seed, i)` only: a map-style data set without state, so a resumed run sees exactly the
batches it has not seen. A row holds retrieval texts with their questions, one after another, or a window of Python
documentation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import torch
from builtin_data import IGNORED
from long_recipe import LongRecipe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from twinrun.tasks.retrieval import RetrievalSettings, answer_text, fit_size, question_text, retrieval
from twinrun.tasks.texts import python_docs
from twinrun.tasks.words import ADJECTIVES, NOUNS

START, END, PAD = "<|endoftext|>", "<|end|>", "<|pad|>"
VOCAB_TOKENS = 1536
WORDS_REPEATED, TEXTS_REPEATED = (
    40,
    20,
)  # so that keys and wording become whole tokens beside the documentation
SHARES = {"niah_multikey": 0.5, "variable_tracking": 0.25, "niah_single": 0.15}  # the rest is documentation
LATE_SHARES = {"niah_multikey": 0.3, "variable_tracking": 0.6, "niah_single": 0.05}
QUERIES = 8  # most questions about one text
MOST_HOPS = 4  # steps of a chain of variables, fewer in short rows
SMALLEST = 0.3  # of the largest haystack that fits into the row


def long_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE from training texts of the tasks and training documentation; each digit is a token of its own."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_TOKENS,
        special_tokens=[START, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = [f" {word}-{other}" for word in ADJECTIVES for other in NOUNS]
    texts = [
        item.context + question_text(item.asked[0])
        for task in ("niah_single", "niah_multikey", "variable_tracking")
        for item in (retrieval(i, RetrievalSettings(task=task, size=8)) for i in range(100))
    ]
    core.train_from_iterator(words * WORDS_REPEATED + texts * TEXTS_REPEATED + python_docs("train"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


class Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Endless training batches, random access, no state."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: LongRecipe) -> None:
        """Encode the documentation once."""
        self.core: Any = tokenizer.backend_tokenizer
        self.recipe = recipe
        self.start, self.end = (tokenizer.convert_tokens_to_ids(name) for name in (START, END))
        self.text: list[int] = []
        for encoding in self.core.encode_batch(python_docs("train")):
            self.text += [*encoding.ids, self.start]
        self.largest = cache(self._largest)

    def __len__(self) -> int:
        """Number of batches, larger than any run."""
        return 100_000_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Batch `index`: `input_ids` and `labels`, both ``[rows, tokens]`` int64."""
        length = self.recipe.row(index)
        rows = [self.row(index, place, length) for place in range(self.recipe.batch_tokens // length)]
        return {"input_ids": torch.tensor([r[0] for r in rows]), "labels": torch.tensor([r[1] for r in rows])}

    def row(self, index: int, place: int, length: int) -> tuple[list[int], list[int]]:
        """Ids and labels of one row; only how answers begin, and the answers, are learned in a retrieval row."""
        rng = Random(f"twinrun/long/{self.recipe.seed}/{index}/{place}")
        is_late = index >= self.recipe.late
        shares = LATE_SHARES if is_late else SHARES
        kind = rng.choices([*shares, "text"], [*shares.values(), 1 - sum(shares.values())])[0]
        if kind == "text":
            at = rng.randrange(len(self.text) - length)
            return self.text[at : at + length], self.text[at : at + length]
        ids, labels = [], []
        room = length
        while room > 0:
            hops = rng.randint(1, min(MOST_HOPS, length // 64)) if not is_late else MOST_HOPS
            given, wanted = self.told(kind, rng, length, room, hops)
            ids, labels = ids + given, labels + wanted
            room = length - len(ids)
        return ids[:length], labels[:length]

    def told(self, task: str, rng: Random, length: int, room: int, hops: int) -> tuple[list[int], list[int]]:
        """One text with its questions, not longer than the room if the smallest is not."""
        queries = min(QUERIES, max(1, length // 64)) if task == "niah_multikey" else 1
        plan = RetrievalSettings(
            task=task, size=2 * queries, digits=self.recipe.digits, queries=queries, hops=hops
        )
        most = max(1, self.largest(plan, length) * room // length)
        size = rng.randint(max(1, int(SMALLEST * most)), most)
        queries = min(queries, max(1, size // 2))
        plan = replace(plan, size=size, queries=queries, seed=self.recipe.seed)
        item = retrieval(rng.randrange(1 << 48), plan)
        ids = [self.start, *self.core.encode(f"{item.context}\n").ids]
        labels = [IGNORED] * len(ids)
        for asked in item.asked:
            question = self.core.encode(f"{asked.question}\n").ids
            answer = [*self.core.encode(f"{asked.answer_prefix}{answer_text(asked)}").ids, self.end]
            ids += question + answer
            labels += [IGNORED] * len(question) + answer
        return ids, labels

    def _largest(self, plan: RetrievalSettings, length: int) -> int:
        return fit_size(plan, length - 2, lambda text: len(self.core.encode(text).ids))
