"""Oracles of scorer training that share no code with it: numbers by finite differences and by loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def answer_loss(module: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Mean negative log-likelihood of the answer behind the prompt: one row, no padding, token by token."""
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    total = 0.0
    for i, token in enumerate(answer):
        row = logits[len(prompt) + i - 1]
        total -= float(row[token] - torch.logsumexp(row, 0))
    return total / len(answer)


def saliency_by_differences(
    module: nn.Module, layer: nn.Module, prompt: Sequence[int], answer: Sequence[int], step: float = 1e-5
) -> list[float]:
    """d loss / d e when the input of `layer` at a token is multiplied by 1 + e: that is gradient x hidden state."""

    def loss(token: int, factor: float) -> float:
        def hook(_m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0].clone()
            hidden[0, token] *= factor
            return (hidden, *args[1:]), kwargs

        handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            return answer_loss(module, prompt, answer)
        finally:
            handle.remove()

    return [(loss(t, 1 + step) - loss(t, 1 - step)) / (2 * step) for t in range(len(prompt))]


def plain_mse(scores: Sequence[float], targets: Sequence[float]) -> float:
    """Mean of squared differences."""
    return sum((s - t) ** 2 for s, t in zip(scores, targets, strict=True)) / len(scores)


def plain_ranking(scores: Sequence[float], targets: Sequence[float]) -> float:
    """Mean over all pairs with unequal targets, by two loops."""
    total, count = 0.0, 0
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            if targets[i] == targets[j]:
                continue
            sign = 1.0 if targets[i] > targets[j] else -1.0
            x = -(scores[i] - scores[j]) * sign
            total += max(x, 0.0) + math.log1p(math.exp(-abs(x)))
            count += 1
    return total / count if count else 0.0


def plain_ranks(values: Sequence[float]) -> list[float]:
    """For each value, how many are smaller, plus half of the others that are equal."""
    return [sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]


def slope(loss: Callable[[float], float], at: float, step: float = 1e-6) -> float:
    """Derivative of a function of one number; from the right at 0, where it has no left."""
    if at == 0.0:
        return (loss(step) - loss(0.0)) / step
    return (loss(at + step) - loss(at - step)) / (2 * step)


def as_floats(values: Tensor) -> list[float]:
    """A row as Python numbers."""
    return [float(v) for v in values.double()]
