"""Measured skill of a masked-diffusion checkpoint: exact answers, and loss bounds beside those of a unigram table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from builtin_measure import MEASURE_SEED, wilson
from diffusion_data import END, MASK, prompt_ids
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from twinrun.tasks.arithmetic import Problem, is_exact, problem

BLOCK = 32


def canvas_tokens(steps: int) -> int:
    """Room for the answer to a problem of so many steps, a multiple of the block."""
    return -(-(16 * steps + 8) // BLOCK) * BLOCK


def held_out(count: int, steps: int) -> list[Problem]:
    """Held-out problems of exactly so many steps."""
    return [problem(i, seed=MEASURE_SEED, split="heldout", steps=(steps, steps)) for i in range(count)]


@torch.inference_mode()
def decode(model: PreTrainedModel, rows: list[list[int]], room: int, block: int, mask: int) -> torch.Tensor:
    """Plain semi-autoregressive decoding: block by block, in each forward the surest masked token is committed.

    Source: Nie et al. 2025, arXiv:2502.09992, section 2.4 (low-confidence remasking), one token per forward.

    Args:
        model: bidirectional; returns logits for every position.
        rows: prompts, of any lengths; shorter ones are padded on the left and the padding is masked out.
        room: new tokens, a multiple of `block`.
        block: tokens of a block.
        mask: id of the mask token; never committed.

    Returns:
        ``[rows, room]`` int64, without the prompts.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[mask] * (longest - len(row)) + row + [mask] * room for row in rows])
    real = torch.tensor([[0] * (longest - len(row)) + [1] * (len(row) + room) for row in rows])
    places = (real.cumsum(1) - 1).clamp(min=0)
    for start in range(longest, longest + room, block):
        part = slice(start, start + block)
        for _ in range(block):
            logits = model(input_ids=ids, attention_mask=real, position_ids=places, use_cache=False).logits
            logits = logits[:, part].float()
            logits[..., mask] = -torch.inf
            sure, best = logits.softmax(-1).max(-1)
            at = sure.masked_fill(ids[:, part] != mask, -1.0).argmax(1, keepdim=True)
            ids[:, part] = ids[:, part].scatter(1, at, best.gather(1, at))
    return ids[:, longest:]


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Problem], batch: int = 50
) -> list[str]:
    """Decoded answers in the order of `items`, up to their first end token."""
    end, mask = (tokenizer.convert_tokens_to_ids(name) for name in (END, MASK))
    texts: list[str] = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        rows = [prompt_ids(tokenizer.backend_tokenizer, item.question) for item in part]
        room = canvas_tokens(max(item.steps for item in part))
        for row in decode(model, rows, room, BLOCK, mask).tolist():
            texts.append(tokenizer.decode(row[: row.index(end)] if end in row else row))
    return texts


def exact_rate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Problem]
) -> dict[str, Any]:
    """Exact answers with their Wilson interval, and how many answers are the worked text to the letter."""
    model.eval()
    texts = answers(model, tokenizer, items)
    hits = sum(is_exact(text, item) for text, item in zip(texts, items, strict=True))
    low, high = wilson(hits, len(items))
    return {
        "exact": hits / len(items),
        "interval_95": [low, high],
        "hits": hits,
        "problems": len(items),
        "exact_worked_text": sum(t == i.answer_text for t, i in zip(texts, items, strict=True)) / len(items),
    }
