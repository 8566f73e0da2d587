"""Measured skill of `builtin:long`: exact answers on held-out retrieval texts of given lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from builtin_measure import MEASURE_SEED, wilson
from long_data import START
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from twinrun.tasks.retrieval import Retrieval, RetrievalSettings, fit_size, is_exact, recall, retrieval

TASKS = ("niah_single", "niah_multikey", "variable_tracking")
NEW_TOKENS = {"niah_single": 12, "niah_multikey": 12, "variable_tracking": 44}


def held_out(
    tokenizer: PreTrainedTokenizerFast, task: str, tokens: int, count: int, digits: int
) -> list[Retrieval]:
    """Held-out texts of a task, each as long as fits into so many tokens."""
    plan = RetrievalSettings(task=task, size=1, digits=digits, seed=MEASURE_SEED, split="heldout")
    core: Any = tokenizer.backend_tokenizer
    size = fit_size(plan, tokens - 2, lambda text: len(core.encode(text).ids))
    return [retrieval(i, replace(plan, size=size)) for i in range(count)]


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Retrieval], batch: int = 8
) -> list[str]:
    """Greedy answers in the order of `items`, behind a start token; left-padded batches."""
    model.eval()
    texts: list[str] = []
    for at in range(0, len(items), batch):
        part = items[at : at + batch]
        encoded = tokenizer(
            [START + item.prompt for item in part], padding=True, return_tensors="pt", verbose=False
        )
        room = max(NEW_TOKENS[item.settings.task] for item in part)
        out: Any = model.generate(**encoded, max_new_tokens=room, do_sample=False, use_cache=True)
        texts += tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def rate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Retrieval]
) -> dict[str, Any]:
    """Exact answers with their Wilson interval, and the mean share of references found (RULER's score)."""
    texts = answers(model, tokenizer, items)
    hits = sum(is_exact(text, item) for text, item in zip(texts, items, strict=True))
    low, high = wilson(hits, len(items))
    found = sum(recall(text, item) for text, item in zip(texts, items, strict=True)) / len(items)
    return {
        "exact": hits / len(items),
        "interval_95": [low, high],
        "hits": hits,
        "problems": len(items),
        "recall": found,
    }


def skill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    lengths: Sequence[int],
    count: int,
    digits: int,
) -> dict[str, dict[str, Any]]:
    """Rates of `count` texts for each task and length: ``report[task][length]``."""
    return {
        task: {
            str(tokens): rate(model, tokenizer, held_out(tokenizer, task, tokens, count, digits))
            for tokens in lengths
        }
        for task in TASKS
    }
