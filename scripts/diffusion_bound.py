"""Loss bounds of a masked-diffusion model on held-out canvases, beside a table of token frequencies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from builtin_measure import MEASURE_SEED
from diffusion_data import END, MASK, prompt_ids
from diffusion_measure import canvas_tokens, held_out
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from twinrun.tasks.arithmetic import MAX_STEPS, Problem, problem
from twinrun.tasks.texts import python_docs

WINDOW = 64  # tokens of a text canvas
DRAWS = 4  # maskings of each canvas
BATCH = 32


class Canvas(NamedTuple):
    """What is given and what may be masked."""

    given: list[int]
    wanted: list[int]


def answer_canvases(tokenizer: PreTrainedTokenizerFast, items: Sequence[Problem]) -> list[Canvas]:
    """The problem, and its answer filled up with end tokens to the room that decoding has."""
    core, end = tokenizer.backend_tokenizer, tokenizer.convert_tokens_to_ids(END)
    found = []
    for item in items:
        answer = core.encode(item.answer_text).ids
        ends = [end] * (canvas_tokens(item.steps) - len(answer))
        found.append(Canvas(prompt_ids(core, item.question), answer + ends))
    return found


def text_canvases(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Canvas]:
    """The first window of each text that is long enough, nothing given."""
    ids = (encoding.ids[:WINDOW] for encoding in tokenizer.backend_tokenizer.encode_batch(list(texts)))
    return [Canvas([], row) for row in ids if len(row) == WINDOW]


@torch.inference_mode()
def bound(model: PreTrainedModel, canvases: Sequence[Canvas], mask: int) -> dict[str, float]:
    """Upper bound of the negative log-likelihood, nats a canvas token, with its 95 % interval over canvases.

    Exactly `k` tokens are masked, `k` spread evenly over 1 to the length; masked cross-entropy times length over
    `k`. Source: Nie et al. 2025, arXiv:2502.09992, equation 6 (it varies less than independent masking).
    """
    model.eval()
    draw = torch.Generator().manual_seed(MEASURE_SEED)
    means: list[float] = []
    for canvas in canvases:
        size, ids = len(canvas.wanted), torch.tensor([canvas.given + canvas.wanted] * DRAWS)
        offset = torch.rand((), generator=draw)
        counts = (((torch.arange(DRAWS) + offset) / DRAWS) * size).long() + 1
        ranks = torch.rand(DRAWS, size, generator=draw).argsort(1).argsort(1)
        hidden = ranks < counts[:, None]
        masked = ids.clone()
        masked[:, len(canvas.given) :][hidden] = mask
        logits = model(input_ids=masked, use_cache=False).logits[:, len(canvas.given) :].float()
        target = ids[:, len(canvas.given) :]
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        means.append(float(((nats * hidden).sum(1) / counts).mean()))
    return summary(means)


def summary(means: list[float]) -> dict[str, float]:
    """Mean and normal 95 % interval."""
    mean = sum(means) / len(means)
    spread = math.sqrt(sum((x - mean) ** 2 for x in means) / (len(means) - 1) / len(means))
    return {"nats_per_token": mean, "low": mean - 1.96 * spread, "high": mean + 1.96 * spread}


def unigram(train: Sequence[Canvas], held: Sequence[Canvas], vocabulary: int) -> dict[str, float]:
    """Loss of the token frequencies of `train`, one added to each count, on `held`: no context at all."""
    counts = Counter(token for canvas in train for token in canvas.wanted)
    total = counts.total() + vocabulary
    return summary([-sum(math.log((counts[t] + 1) / total) for t in c.wanted) / len(c.wanted) for c in held])


def bounds(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int) -> dict[str, Any]:
    """Bound and unigram loss on `count` held-out answers of each number of steps, and on documentation."""
    mask = tokenizer.convert_tokens_to_ids(MASK)
    report: dict[str, Any] = {"answers": {}}
    for steps in range(1, MAX_STEPS + 1):
        held = answer_canvases(tokenizer, held_out(count, steps))
        train = [problem(i, seed=MEASURE_SEED, steps=(steps, steps)) for i in range(10 * count)]
        report["answers"][str(steps)] = {
            "model": bound(model, held, mask),
            "unigram": unigram(answer_canvases(tokenizer, train), held, len(tokenizer)),
        }
    held = text_canvases(tokenizer, python_docs("heldout"))[: 2 * count]
    train = text_canvases(tokenizer, python_docs("train"))
    report["text"] = {
        "model": bound(model, held, mask),
        "unigram": unigram(train, held, len(tokenizer)),
        "window": WINDOW,
        "texts": len(held),
        "bytes": sum(len(tokenizer.decode(canvas.wanted).encode()) for canvas in held),
    }
    return report
