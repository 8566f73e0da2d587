"""Caches of the last texts, kept so that a prompt which begins alike can go on from there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twinrun.models.model import Model
from twinrun.records.tokens import first_difference
from twinrun.runners.routing import RouteRecorder


@dataclass(eq=False, slots=True)
class Kept:
    """One text whose cache is kept. `tokens` are those that the cache holds, no more, whatever happens."""

    tokens: list[int]
    cache: Any
    state: Any
    routes: RouteRecorder | None


class PrefixStore:
    """The latest texts of one runner. A cache that is handed out shares no tensor that anybody writes to.

    The layers join tensors and never write into them, so a cut of a kept layer stays what it is, while both texts go
    on.
    """

    def __init__(self, entries: int) -> None:
        """Keep up to `entries` texts."""
        self._kept: deque[Kept] = deque(maxlen=entries)
        self.state: Any = None

    def look(self, model: Model) -> None:
        """Take note of the state that the model is in, before hooks of our own are set."""
        self.state = model_state(model)

    def reuse(
        self, prompt: Sequence[int], make: Callable[[], Any], routes: RouteRecorder | None
    ) -> tuple[Any, int]:
        """Return a cache for `prompt`, and how many of its tokens that holds already (never the last one)."""
        cache, count = make(), 0
        usable = [k for k in self._kept if k.state == self.state and _has_routes(k, routes)]
        shared = {id(k): min(first_difference(k.tokens, prompt), len(prompt) - 1) for k in usable}
        best = max(usable, key=lambda k: shared[id(k)], default=None)
        if best is not None and shared[id(best)] > 0:
            count = shared[id(best)]
            for number, layer in enumerate(best.cache.layers):
                cache.update(layer.keys[..., :count, :], layer.values[..., :count, :], number)
            if routes is not None and best.routes is not None:
                routes.take_over(best.routes, count)
        return cache, count

    def keep(self, tokens: list[int], cache: Any, routes: RouteRecorder | None) -> None:
        """Keep a text; `tokens` is the list that grows with its cache."""
        self._kept.append(Kept(tokens, cache, self.state, routes))

    def forget(self) -> None:
        """Drop all texts."""
        self._kept.clear()


def _has_routes(kept: Kept, routes: RouteRecorder | None) -> bool:
    """Whether a kept text knows the experts of its tokens, where these are asked for."""
    return routes is None or not routes.is_on or kept.routes is not None


def model_state(model: Model) -> tuple[Any, ...]:
    """Return what a kept cache depends on: the weights as they are now, their precision, hooks and patches.

    Weights are told apart by identity, place and torch's count of writes; a write through `.data` or numpy is not
    counted by torch and not seen here.
    """
    parts = list(model.model.modules())
    tensors = [*model.model.parameters(), *model.model.buffers()]
    return (
        model.cast_number,
        tuple((id(t), t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype) for t in tensors),
        tuple((*p._forward_hooks, *p._forward_pre_hooks, id(p.__dict__.get("forward"))) for p in parts),
        getattr(model.config, "_attn_implementation", None),
    )
