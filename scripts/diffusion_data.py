"""Tokenizer and training rows of `builtin:diffusion`: a clean row, and the same row with tokens masked.

Row `i` depends on `(seed, i)` only: a map-style data set without state, so a resumed run sees exactly the
rows it has not seen. A row holds a problem and its answer, sums without their stories (drill), or a window of
Python documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from builtin_data import IGNORED, shared_tokenizer
from diffusion_recipe import DiffusionRecipe
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from twinrun.tasks.arithmetic import MAX_STEPS, Problem, problem
from twinrun.tasks.texts import python_docs

MASK, END = "<|mask|>", "<|end|>"
# From this step on: share of the rows that are sums, of the sums that are small, of the rows that are documentation.
PHASES = {
    0: (0.35, 0.0, 0.04),
    1000: (0.6, 0.0, 0.04),  # numbers are copied by now, sums are the bottleneck
    1300: (0.6, 0.0, 0.0),  # and the large loss of documentation drowns theirs
    1600: (0.6, 0.5, 0.0),  # units are still guessed: more sums of few digits
    2400: (0.35, 0.3, 0.0),
    3000: (0.25, 0.2, 0.04),
    3600: (0.15, 0.2, 0.15),  # sums hold; documentation has to be learned anew
}
LEAST_MASKED = 1e-3  # the smallest chance of a mask; the weight of a token is one over the chance
TRIES = 64  # problems looked at to find one that fits into the row


def diffusion_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the other built-ins with one more token, the mask, as its last."""
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizer())
    tokenizer.add_special_tokens({"mask_token": MASK})
    return tokenizer


def prompt_ids(core: Any, question: str) -> list[int]:
    """Ids of a question in chat form, up to where the answer begins."""
    return core.encode(f"<|user|>{question}{END}<|assistant|>").ids


def small_sum(rng: Random) -> str:
    """A sum with an operand of one digit, as it stands in a worked line."""
    sign, a, b = rng.choice("++--*/"), rng.randint(1, 29), rng.randint(1, 9)
    if sign in "*/":
        b = rng.randint(2, 5)
    left, result = {"+": (a, a + b), "-": (a + b, a), "*": (a, a * b), "/": (a * b, a)}[sign]
    return f"{left} {sign} {b} = {result}"


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Endless training rows, all of one batch equally long, random access, no state."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: DiffusionRecipe) -> None:
        """Encode the documentation once."""
        self.core, self.recipe = tokenizer.backend_tokenizer, recipe
        self.end, self.mask = (tokenizer.convert_tokens_to_ids(name) for name in (END, MASK))
        self.text: list[int] = []
        for encoding in self.core.encode_batch(python_docs("train")):
            self.text += [*encoding.ids, tokenizer.convert_tokens_to_ids("<|endoftext|>")]

    def __len__(self) -> int:
        """Number of rows, larger than any run."""
        return 100_000_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Row `index`, masked: `input_ids`, `labels` (``-100`` where nothing is masked), ``[tokens]`` int64.

        `weight` is one over the chance of a mask and over the number of tokens that could have been masked.
        The chances of a batch are spread evenly over (0, 1]: their offset is drawn once for each batch.
        """
        recipe = self.recipe
        batch, place = divmod(index, recipe.batch_blocks)
        offset = Random(f"twinrun/diffusion/{recipe.seed}/batch/{batch}").random()
        time = (offset + place / recipe.batch_blocks) % 1
        chance = LEAST_MASKED + (1 - LEAST_MASKED) * time
        rng = Random(f"twinrun/diffusion/{recipe.seed}/{index}")
        ids, wanted = self.clean(index, rng)
        hidden = torch.tensor([w and rng.random() < chance for w in wanted])
        row = torch.tensor(ids)
        return {
            "input_ids": row.masked_fill(hidden, self.mask),
            "labels": row.masked_fill(~hidden, IGNORED),
            "weight": torch.tensor(1 / (chance * sum(wanted))),
        }

    def clean(self, index: int, rng: Random) -> tuple[list[int], list[bool]]:
        """Ids of row `index` and which of them may be masked."""
        step = index // self.recipe.batch_blocks
        length, steps = self.recipe.row(step)
        drills, small, texts = PHASES[max(begin for begin in PHASES if begin <= step)]
        kind = rng.random()
        if kind < texts:
            start = rng.randrange(len(self.text) - length)
            return self.text[start : start + length], [True] * length
        if kind < texts + drills:
            return self.drill(index, length, small, rng)
        for item in self.problems(index, steps):
            given, answer = prompt_ids(self.core, item.question), self.core.encode(item.answer_text).ids
            room = length - len(given)
            if len(answer) < room:
                ends = [self.end] * (room - len(answer))
                return given + answer + ends, [False] * len(given) + [True] * room
        raise AssertionError(f"no problem of {steps} steps fits into {length} tokens")

    def problems(self, index: int, steps: int) -> Iterator[Problem]:
        """Problems of row `index`: as many steps as there is room for in half of the rows, else fewer."""
        fewest = steps if index % 2 else 1
        for j in range(TRIES):
            yield problem(index * TRIES + j, seed=self.recipe.seed, steps=(fewest, steps))

    def drill(self, index: int, length: int, small: float, rng: Random) -> tuple[list[int], list[bool]]:
        """Sums, each of another problem (the next line of one would tell the result); results may be masked."""
        ids: list[int] = []
        wanted: list[bool] = []
        for item in self.problems(index, MAX_STEPS):
            line = rng.choice(item.answer_text.splitlines()[:-1]).partition(": ")[2]
            if small and rng.random() < small:
                line = small_sum(rng)
            left, result = line.split(" = ")
            asked, found = self.core.encode(f"{left} =").ids, self.core.encode(f" {result}\n").ids
            ids += asked + found
            wanted += [False] * len(asked) + [True] * len(found)
            if len(ids) >= length:
                return ids[:length], wanted[:length]
        raise AssertionError(f"{TRIES} sums are shorter than {length} tokens")
