"""KL between an expert and an amateur at every token of a text, one forward of each, streamed through both heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.models.model import Model, Prompt
from twinrun.models.tokenizers import check_same_tokens
from twinrun.numerics.divergence import TokenStats, kl_divergence, token_stats
from twinrun.records.scores import Scores
from twinrun.records.tokens import ContrastedText
from twinrun.runners.generation import as_batch
from twinrun.runners.score import length_batches, token_texts
from twinrun.runners.singlepass import SinglePass


def contrast(
    expert: Model,
    amateur: Model,
    texts: Prompt | Sequence[Prompt],
    *,
    starts: Sequence[int] | None = None,
    top_k: int = 5,
    batch_size: int = 8,
) -> list[ContrastedText]:
    """Return KL(expert || amateur) at every token.

    Source: LightReasoner (arXiv:2510.07962), step selection: KL over the full vocabulary at every step of
        an answer.

    Args:
        expert: the side that the expectation is taken under.
        amateur: the other side; the same tokenizer. Vocabularies of unequal size are compared on the shared
            ids.
        texts: one text, or a list of texts or lists of token ids (prompt and answer together).
        starts: for each text, the tokens that are prompt and are not contrasted; None contrasts all but the
            first.
        top_k: alternatives of both sides kept a token.
        batch_size: texts a forward.

    Returns:
        One `ContrastedText` a text, in the order given.

    Raises:
        ConfigError: tokenizers that disagree (first id named), starts that do not fit, texts too long.

    Differs from the paper: distributions come from one forward over the whole text instead of one a prefix
    (the same numbers, see `twinrun verify`), and no epsilon is added to them.

    Cost: one forward of each model a batch and two float32 blocks of logits; `[tokens, vocab]` never exists.

    Example:
        >>> found = contrast(load("builtin:expert"), load("builtin:amateur"), ["7 + 5 = 12"])
        >>> found[0].kl[0] is None and found[0].kl[1] >= 0
        True
    """
    prompts = as_batch(texts)
    check_same_tokens(expert, amateur, [t for t in prompts if isinstance(t, str)])
    rows = [expert.encode(t) for t in prompts]
    first = list(starts) if starts is not None else [1] * len(rows)
    if len(first) != len(rows):
        raise ConfigError(f"{len(rows)} texts with {len(first)} starts; give one start a text")
    found: dict[int, ContrastedText] = {}
    for chunk in length_batches(rows, batch_size):
        batch, at = [rows[i] for i in chunk], [first[i] for i in chunk]
        sides = (SinglePass(expert).score_batch(batch, at), SinglePass(amateur).score_batch(batch, at))
        with torch.inference_mode():
            for index, e, a in zip(chunk, *sides, strict=True):
                found[index] = _one_text(expert, e, a, first[index], top_k)
    return [found[i] for i in range(len(rows))]


def _one_text(expert: Model, e: Scores, a: Scores, start: int, top_k: int) -> ContrastedText:
    divergence = kl_divergence(e.logits, a.logits)
    expert_stats, amateur_stats = (token_stats(s.logits, s.next_ids, top_k) for s in (e, a))
    dropped = torch.cat([divergence.dropped_mass_p, divergence.dropped_mass_q])
    return ContrastedText(
        token_ids=list(e.tokens),
        tokens=token_texts(expert, e.tokens),
        start=start,
        kl=_at_tokens(divergence.kl, start),
        expert_logprobs=_at_tokens(expert_stats.logprob, start),
        amateur_logprobs=_at_tokens(amateur_stats.logprob, start),
        expert_top=_tops(expert_stats, start),
        amateur_top=_tops(amateur_stats, start),
        shared_vocab=divergence.shared_vocab,
        dropped_mass_max=float(dropped.max()) if len(dropped) else 0.0,
    )


def _at_tokens(values: Tensor, start: int) -> list[float | None]:
    """Row i predicts token start + i; the last row predicts beyond the text and is dropped."""
    return [None] * start + [float(v) for v in values[:-1]]


def _tops(stats: TokenStats, start: int) -> list[list[tuple[int, float]] | None]:
    pairs = zip(stats.top_ids[:-1].tolist(), stats.top_logprob[:-1].tolist(), strict=True)
    return [None] * start + [list(zip(ids, values, strict=True)) for ids, values in pairs]
