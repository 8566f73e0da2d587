"""Steps of fixed shapes, recorded once as a CUDA graph and launched together: what "compiled" means on a CUDA device.

A GPU's kernels for one token of a small model are shorter than their launches. A CUDA graph launches all of them at
once, and wants every address and shape to stay: each step attends to all slots under a mask over the empty ones, and
the slot to write is a tensor. The graph is recorded anew in every run, on that run's cache and weights.

Source: Ng et al. 2021, "Accelerating PyTorch with CUDA Graphs" (pytorch.org); torch's own `mode="reduce-overhead"` does
the same behind `torch.compile`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twinrun.models.positions import layer_windows
from twinrun.runners.capture import Numbers
from twinrun.runners.captured import CapturedStep, Graph, close

WARM_UPS = 3
"""Steps run on a side stream before a graph is recorded, as torch asks for."""


class GraphedStep(CapturedStep):
    """Forwards of one run by a CUDA graph; on a processor the same step of fixed shapes runs plainly (for tests)."""

    name = "compiled"

    def _open(self, cache: Any, mask: Tensor | None) -> None:
        super()._open(cache, mask)
        if self.why is None and (len(self._sizes) > 1 or any(layer_windows(self._model))):
            self.why = "a step of fixed shapes has no window"
        if self.why is not None:
            return
        slots = self._sizes[0]
        real = (
            mask.new_zeros(mask.shape[0], slots)
            if mask is not None
            else self._table.new_zeros(self._plan.rows, slots)
        )
        seen = self._layers[0].seen
        real[:, :seen] = 1 if mask is None else mask[:, :seen]
        self._mask, self._slot = real, self._table.new_zeros(1)
        self._plan = replace(self._plan, is_masked=True, fixed_slots=slots)
        self._key = (self._state, self._plan, "fixed")

    def _replay(self, ids: Tensor, positions: Tensor, numbers: Numbers) -> list[Tensor]:
        assert self._step is not None
        assert self._mask is not None
        seen = numbers[0]
        self._slot.fill_(numbers[1])
        self._mask[:, seen : seen + 1] = 1
        outs = self._step(ids, positions)
        for layer in self._layers:
            layer.seen += 1
        self.replayed += 1
        return outs

    def _numbers(self) -> Numbers:
        numbers = super()._numbers()
        # A ring that has wrapped writes where a mask of fixed shape would have to move; the own forward does that.
        if numbers[0] >= numbers[3]:
            self.why = "a step of fixed shapes has no ring that wraps"
        return numbers

    def _timed_replay(self, ids: Tensor, placed: Tensor, numbers: Numbers) -> list[Tensor]:
        """The first call records; its seconds are kept apart."""
        began = time.perf_counter()
        outs = self._replay(ids, placed, numbers)
        self._store.compile_seconds += time.perf_counter() - began
        return outs

    def bound(self, graph: Graph) -> Callable[..., list[Tensor]]:
        """Return a function of ids and positions that runs one step on fixed buffers."""
        flat, mask, slot, buffers = graph.flat.bind(), self._mask, self._slot, tuple(self._buffers)

        def step(ids: Tensor, positions: Tensor) -> list[Tensor]:
            found: list[Tensor] = flat(ids, positions, mask, slot, *buffers)
            return found

        return (
            recorded(step, self._plan.rows, self._model.device) if self._model.device.type == "cuda" else step
        )

    def agrees(self, got: Tensor, want: Tensor) -> bool:
        """Whether a step is the model's own forward up to rounding: a mask adds terms that are zero."""
        return close(got, want)


def recorded(
    step: Callable[..., list[Tensor]], rows: int, device: torch.device
) -> Callable[..., list[Tensor]]:
    """Record `step` as a CUDA graph at its first call; later calls copy ids and positions in and launch it."""
    ids, positions = (torch.zeros(rows, 1, dtype=torch.long, device=device) for _ in range(2))
    graph = torch.cuda.CUDAGraph()
    outs: list[Tensor] = []

    def run(new_ids: Tensor, new_positions: Tensor) -> list[Tensor]:
        ids.copy_(new_ids)
        positions.copy_(new_positions)
        if not outs:
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # unannotated there
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step(ids, positions)  # writes the same slot again: a step leaves nothing else behind
            torch.cuda.current_stream(device).wait_stream(side)
            with torch.cuda.graph(graph):
                outs.extend(step(ids, positions))
        graph.replay()
        return [out.clone() for out in outs]

    return run
