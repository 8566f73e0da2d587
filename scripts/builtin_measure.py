"""Measured skill of a checkpoint: exact answers on held-out problems, loss on held-out documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from twinrun.tasks.arithmetic import Problem, is_exact, problem
from twinrun.tasks.texts import python_docs

MEASURE_SEED = 7


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion. Source: Wilson 1927, JASA 22(158), the score interval."""
    rate, share = hits / total, z * z / total
    middle = (rate + share / 2) / (1 + share)
    half = z * math.sqrt(rate * (1 - rate) / total + share / (4 * total)) / (1 + share)
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Problem], batch: int = 100
) -> list[str]:
    """Greedy answers in the order of `items`; left-padded batches."""
    texts: list[str] = []
    for start in range(0, len(items), batch):
        chats = [[{"role": "user", "content": item.question}] for item in items[start : start + batch]]
        prompts = [
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats
        ]
        encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        out: Any = model.generate(**encoded, max_new_tokens=120, do_sample=False)
        texts += tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def skill(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int) -> dict[str, Any]:
    """Exact answers on `count` held-out problems with Wilson intervals, overall and per number of steps."""
    model.eval()
    items = [problem(i, seed=MEASURE_SEED, split="heldout") for i in range(count)]
    texts = answers(model, tokenizer, items)
    right = [is_exact(text, item) for text, item in zip(texts, items, strict=True)]
    worked = [text.strip() == item.answer_text for text, item in zip(texts, items, strict=True)]
    report = {**_rate(right), "exact_worked_text": sum(worked) / count, "by_steps": {}}
    for steps in sorted({item.steps for item in items}):
        report["by_steps"][str(steps)] = _rate(
            [r for r, i in zip(right, items, strict=True) if i.steps == steps]
        )
    return report


def _rate(right: list[bool]) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    return {
        "exact": sum(right) / len(right),
        "interval_95": [low, high],
        "hits": sum(right),
        "problems": len(right),
    }


@torch.inference_mode()
def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    window: int = 512,
    texts: Sequence[str] | None = None,
) -> dict[str, float]:
    """Loss on `texts` (the held-out documentation), each cut to its first `window` tokens and read by itself."""
    model.eval()
    nats, tokens, size = 0.0, 0, 0
    first = torch.tensor([[tokenizer.convert_tokens_to_ids("<|endoftext|>")]])
    for text in python_docs("heldout") if texts is None else texts:
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][:, : window - 1]
        logits = model(input_ids=torch.cat([first, ids], 1)).logits[0, :-1].float()
        nats += torch.nn.functional.cross_entropy(logits, ids[0], reduction="sum").item()
        tokens += ids.shape[1]
        size += len(tokenizer.decode(ids[0]).encode())
    return {
        "nats_per_token": nats / tokens,
        "bits_per_byte": nats / math.log(2) / size,
        "tokens": tokens,
        "bytes": size,
    }
