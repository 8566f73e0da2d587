"""Score texts: the log-probability of every token, one forward for a batch of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.models.model import Model, Prompt
from twinrun.numerics.logits_policy import LogitsPolicy
from twinrun.records.tokens import ScoredText
from twinrun.runners.generation import as_batch
from twinrun.runners.runner import ModelScorer
from twinrun.runners.singlepass import SinglePass


def score(
    model: Model,
    texts: Prompt | Sequence[Prompt],
    *,
    batch_size: int = 8,
    logits: LogitsPolicy | None = None,
) -> list[ScoredText]:
    """Return the log-probability of every token of every text.

    Args:
        model: what `twinrun.load` returns.
        texts: one text, or a list of texts or lists of token ids. Each must fit the context.
        batch_size: texts a forward, at least 1; they are left-padded together, longest first.
        logits: which rows are kept, the precision of the softmax, rows a block; None is all, streamed in float32.
            Of `keep=n` rows the last predicts what would follow, so the last n - 1 tokens have a score.

    Returns:
        One `ScoredText` a text, in the order given. The first token of a text has no context and no score, nor
        have tokens whose row is not kept.

    Raises:
        ConfigError: an empty text, one beyond the context, or an id outside the vocabulary.

    Cost: one forward for every `batch_size` texts; logits are streamed in blocks, never `[tokens, vocab]`
        at once.

    Example:
        >>> len(score(load("builtin:amateur"), ["Two and two are four."])[0].logprobs) > 4
        True
    """
    rows = [model.encode(text) for text in as_batch(texts)]
    runner = SinglePass(model, logits)
    found: dict[int, ScoredText] = {}
    for chunk in length_batches(rows, batch_size):
        for index, scores in zip(
            chunk, runner.score_batch([rows[i] for i in chunk], [1] * len(chunk)), strict=True
        ):
            with torch.inference_mode():
                stats = scores.stats(top_k=1)
            blank: list[Any] = [None] * (len(rows[index]) - len(stats.logprob))
            found[index] = ScoredText(
                token_ids=rows[index],
                tokens=token_texts(model, rows[index]),
                logprobs=blank + shifted(stats.logprob),
                entropies=blank + shifted(stats.entropy),
                top1=[*blank, None, *stats.top_ids[:-1, 0].tolist()],
            )
    return [found[i] for i in range(len(rows))]


def score_last(runner: ModelScorer, texts: Prompt | Sequence[Prompt], last: int) -> list[ScoredText]:
    """Return the log-probability of the last tokens of every text by any runner; the others are its prompt.

    What a runner does to prompts shows here: one that prunes drops tokens of all but the last, and a cached one feeds
    the last one by one.

    Args:
        runner: which way to run the model.
        texts: one text, or a list of texts or lists of token ids.
        last: tokens that are scored, at least 1; a text with no more has its first token as the prompt.

    Raises:
        ConfigError: `last` below 1, an empty text, or one beyond the context.

    Example:
        >>> [p is None for p in score_last(KVCache(load("builtin:amateur")), [[5, 6, 7, 8]], 2)[0].logprobs]
        [True, True, False, False]
    """
    if last < 1:
        raise ConfigError(f"last must be at least 1 token, got {last}")
    rows = [runner.encode(text) for text in as_batch(texts)]
    starts = [max(1, len(row) - last) for row in rows]
    found = []
    for row, scores in zip(rows, runner.score_batch(rows, starts), strict=True):
        with torch.inference_mode():
            stats = scores.stats(top_k=1)
        blank: list[Any] = [None] * (len(row) - len(stats.logprob))
        found.append(
            ScoredText(
                token_ids=row,
                tokens=token_texts(runner.model, row),
                logprobs=blank + shifted(stats.logprob),
                entropies=blank + shifted(stats.entropy),
                top1=[*blank, None, *stats.top_ids[:-1, 0].tolist()],
            )
        )
    return found


def length_batches(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield indices of rows in batches of like length, longest first: little padding, and memory shows early."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for at in range(0, len(order), max(1, batch_size)):
        yield order[at : at + max(1, batch_size)]


def shifted(values: Tensor) -> list[float | None]:
    """Move a value from the position that predicts to the token that is predicted; drop what follows the last token."""
    return [None, *(float(v) for v in values[:-1])]


def token_texts(model: Model, ids: Sequence[int]) -> list[str] | None:
    """Return each token's text; parts of a character show as a replacement mark. None without a tokenizer."""
    return None if model.tokenizer is None else [str(model.tokenizer.decode([i])) for i in ids]
