"""What a model's head did in a forward: that logits are head and tail of a hidden row, proved without a product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.models.model import Model


class WatchedHead:
    """Sees each call of a model's head while it is watched. `forget` before a forward, `made` behind it."""

    def __init__(self, model: Model) -> None:
        """Nothing is seen yet; use `watching`."""
        self._model = model
        self._calls: list[tuple[Tensor, Tensor]] = []

    def forget(self) -> None:
        """Let go of earlier calls."""
        self._calls.clear()

    def made(self, hidden: Tensor, logits: Tensor) -> bool:
        """Whether the head was called once, on these hidden rows, and head and tail gave these logits bit for bit.

        False says nothing: a forward that changes the head's output in place, for one, must be asked by a product.
        Always False in a precision that the weights were raised to: called alone, the head may be raised otherwise.
        """
        tail = self._model.layout.tail
        if len(self._calls) != 1 or tail is None or hidden.dtype != self._model.dtype:
            return False
        given, out = self._calls[0]
        return _equal(given, hidden) and _equal(tail(out), logits)

    def hook(self, _module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the head."""
        if len(args) == 1 and isinstance(output, Tensor):
            self._calls.append((args[0], output))


@contextmanager
def watching(model: Model) -> Iterator[WatchedHead]:
    """Watch the head of a model that streams; the hook is gone when the block ends."""
    head = model.layout.head
    assert head is not None  # a model without a head does not stream
    watched = WatchedHead(model)
    handle = head.register_forward_hook(watched.hook)
    try:
        yield watched
    finally:
        handle.remove()
        watched.forget()


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
