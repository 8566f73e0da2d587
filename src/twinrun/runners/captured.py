"""Run decode steps by a captured graph instead of the model's Python, and prove in every run that it is the same.

The first step of a run, and every first step of a graph, runs both ways: the model's own forward, then the graph over
the same slot. A graph that does not give the same numbers is captured again, once; if it still does not, the model's
own forward serves the rest of the run, and the record says why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model
from twinrun.runners.capture import Captured, Numbers, Plan, capture
from twinrun.runners.flat import Flat, flatten
from twinrun.runners.forward import forward
from twinrun.runners.unchanged import state_of, untouched, why_not

MAX_GRAPHS = 32
"""Graphs kept for one runner; a batch of another size, a mask, another precision each need one."""
ROUNDING = 16.0
"""Units in the last place, at the size of the largest logit, by which a step that rounds elsewhere may differ."""
POSITIONS = 4096
"""Length of the table of positions that unpadded steps read theirs from; it grows when a text is longer."""


@dataclass(slots=True)
class Graph:
    """A captured step as a flat function, not yet on any weights."""

    captured: Captured
    flat: Flat


@dataclass(slots=True)
class Store:
    """What one runner has captured so far, and the seconds it took."""

    graphs: dict[Hashable, list[Graph]] = field(default_factory=dict)
    seconds: float = 0.0
    compile_seconds: float = 0.0

    def find(self, key: Hashable, numbers: Numbers) -> Graph | None:
        """Return a graph whose conditions hold for these numbers."""
        return next((g for g in self.graphs.get(key, ()) if g.captured.holds(*numbers)), None)

    def add(self, key: Hashable, graph: Graph) -> None:
        """Keep a graph; the oldest key goes when there are too many."""
        self.graphs.setdefault(key, []).insert(0, graph)
        while sum(map(len, self.graphs.values())) > MAX_GRAPHS:
            self.graphs.pop(next(iter(self.graphs)))

    def forget(self, key: Hashable) -> None:
        """Drop what was captured under a key."""
        self.graphs.pop(key, None)


class CapturedStep:
    """Forwards of one run: one token a row by a graph, everything else through `read`.

    Called like `read`. `why` says why the model's own forward is used, or None.
    """

    name = "captured"

    def __init__(self, model: Model, read: Callable[..., Tensor], store: Store) -> None:
        self._model, self._read, self._store = model, read, store
        self.why = why_not(model)
        self._state = None if self.why else state_of(model)
        self._key: Hashable = None
        self._holds: Callable[..., bool] | None = None
        self._step: Callable[..., list[Tensor]] | None = None
        self._layers: list[Any] = []
        self._buffers: list[Tensor] = []
        self._mask: Tensor | None = None
        self._took = getattr(read, "took", None)
        self._cache: Any = None
        self._plan: Plan
        self._sizes: list[int] = []
        self._table = torch.arange(POSITIONS, device=model.device)[None]
        self.replayed = 0

    def __call__(
        self, ids: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """One forward; returns what `read` returns."""
        is_plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
        if ids.shape[1] != 1 or self.why is not None or not is_plain:
            return self._read(ids, mask=mask, positions=positions, cache=cache)
        if cache is not self._cache:
            self._open(cache, mask)
        outs = None
        if self.why is None:
            numbers = self._numbers()
        if self.why is None:
            placed = self._placed(ids, numbers[0]) if positions is None else positions
            if self._step is None or self._holds is None or not self._holds(*numbers):
                outs = self._first(ids, mask, positions, placed, numbers)
            else:
                outs = self._replay(ids, placed, numbers)
        if outs is None:
            return self._read(ids, mask=mask, positions=positions, cache=cache)
        return outs[0] if self._took is None else self._took(outs, ids.shape)

    def cache_lengths(self, cache: Any) -> tuple[int, ...] | None:
        """Tokens seen by each layer; None for a cache that no graph writes to."""
        if cache is not self._cache or cache is None:
            return None
        return (self._layers[0].seen,) * len(self._layers)  # all have seen the same, or the graph is not used

    def settings(self) -> dict[str, Any]:
        """What a record says about the step: seconds spent before it was fast, and why it was not used, if so."""
        found: dict[str, Any] = {"step": self.name, "steps_replayed": self.replayed}
        found["capture_seconds"], found["compile_seconds"] = self._store.seconds, self._store.compile_seconds
        return found if self.why is None else {**found, "step_fallback": self.why}

    def _placed(self, ids: Tensor, seen: int) -> Tensor:
        if seen >= self._table.shape[1]:
            self._table = torch.arange(2 * seen, device=ids.device)[None]
        return self._table.narrow(1, seen, 1).expand(ids.shape[0], 1)

    def _replay(self, ids: Tensor, positions: Tensor, numbers: Numbers) -> list[Tensor]:
        assert self._step is not None
        outs = self._step(ids, positions, self._mask, *numbers, *self._buffers)
        for layer in self._layers:
            layer.seen += 1
        self.replayed += 1
        return outs

    def _open(self, cache: Any, mask: Tensor | None) -> None:
        """Look at the cache behind the prompt: its buffers, and whether it is of a kind that a graph can write to."""
        layers = list(cache.layers)
        self.why = _odd_cache(cache, layers)
        if self.why is not None:
            return
        self._cache, self._layers, self._step, self._mask = cache, layers, None, None
        self._sizes = sizes = list(dict.fromkeys(layer.slots for layer in layers))
        self._buffers = [t for layer in layers for t in (layer.keys, layer.values)]
        if mask is not None:
            self._mask = mask.new_ones(mask.shape[0], sizes[0])
            self._mask[:, : mask.shape[1]] = mask
        plan = Plan(
            rows=self._buffers[0].shape[0],
            kinds=tuple(sizes.index(layer.slots) for layer in layers),
            buffers=tuple((_form(layer.keys), _form(layer.values)) for layer in layers),
            is_masked=mask is not None,
            dtype=self._buffers[0].dtype,
        )
        self._plan, self._key = plan, (self._state, plan, self.name)

    def _numbers(self) -> Numbers:
        seen = self._layers[0].seen
        found = [seen]
        for slots in self._sizes:
            found += (seen % slots, min(seen + 1, slots), slots)
        return tuple(found)

    def _first(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, placed: Tensor, numbers: Numbers
    ) -> list[Tensor] | None:
        """Find or capture a graph for these numbers and prove it on this step; None if there is none that is right."""
        outs: list[Tensor] = []
        for _attempt in range(2):
            if not self._take_graph(numbers):
                return None
            want = forward(self._model, ids, mask=mask, positions=positions, cache=self._cache)
            self._back()
            outs = self._timed_replay(ids, placed, numbers)
            if self.agrees(outs[0], want):
                return outs
            self._back()
            self._step = None
            self._store.forget(self._key)
        gap = float((outs[0].float() - want.float()).abs().max())
        self.why = f"the {self.name} step is off by {gap:.2g} in the logits"
        return None

    def _back(self) -> None:
        for layer in self._layers:
            layer.seen -= 1

    def _timed_replay(self, ids: Tensor, placed: Tensor, numbers: Numbers) -> list[Tensor]:
        return self._replay(ids, placed, numbers)

    def written(self, graph: GraphModule) -> Flat:
        """Return the graph as a flat function."""
        return flatten(graph, self._model.core)

    def agrees(self, got: Tensor, want: Tensor) -> bool:
        """Whether a step is the model's own forward, bit for bit."""
        return torch.equal(got, want)

    def _take_graph(self, numbers: Numbers) -> bool:
        """Find or capture a graph. A model that never could be captured is refused; later the own forward serves."""
        graph = self._store.find(self._key, numbers)
        if graph is None:
            began = time.perf_counter()
            try:
                with untouched(self._model), _quietly():
                    captured = capture(self._model, self._plan, numbers)
            except UnsupportedModelError as error:
                if not self._store.seconds:
                    raise
                self.why = str(error)
                return False
            graph = Graph(captured, self.written(captured.graph))
            self._store.add(self._key, graph)
            self._store.seconds += time.perf_counter() - began
        self._holds, self._step = graph.captured.holds, self.bound(graph)
        return True

    def bound(self, graph: Graph) -> Callable[..., list[Tensor]]:
        """Return the step on the tensors that the model has now."""
        return graph.flat.bind()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch from logging an operator that has no shapes; the refusal says it in one line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def close(got: Tensor, want: Tensor) -> bool:
    """Whether logits differ by rounding: `ROUNDING` units in the last place at the size of the largest."""
    gap = float((got.double() - want.double()).abs().max())
    return gap <= ROUNDING * torch.finfo(want.dtype).eps * float(want.abs().max())


def _form(buffer: Tensor) -> tuple[int, int]:
    return int(buffer.shape[1]), int(buffer.shape[3])


def _odd_cache(cache: Any, layers: list[Any]) -> str | None:
    """Return why a graph cannot write to this cache; a cache whose methods were replaced must be called."""
    if any(name in vars(part) for part in (cache, *layers) for name in ("update", "get_mask_sizes")):
        return "the cache has methods that were put in place of its own"
    if not all(hasattr(layer, "slots") and layer.is_initialized for layer in layers):
        return f"a {type(cache).__name__} has no slots"
    if len({layer.seen for layer in layers}) != 1:
        return "layers have seen unequal numbers of tokens"
    return None
