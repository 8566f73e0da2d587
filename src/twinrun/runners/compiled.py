"""Compile the captured graph of a step with torch's own compiler: fewer, fused kernels for seconds of compile time.

What is compiled is the flat graph, not the modelling code, so the compiler has one short function to read and every
length runs the same code. Inductor keeps its results on disk: a second process that asks for the same step gets it in
seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from twinrun.runners.capture import Numbers
from twinrun.runners.captured import CapturedStep, Graph, close
from twinrun.runners.flat import Flat, flatten


class CompiledStep(CapturedStep):
    """Forwards of one run by a compiled graph. Fused kernels round elsewhere, so the proof allows rounding."""

    name = "compiled"

    def written(self, graph: GraphModule) -> Flat:
        """Return the graph as a flat function of operators, which the compiler knows best."""
        return flatten(graph, self._model.core, direct=False)

    def bound(self, graph: Graph) -> Callable[..., list[Tensor]]:
        """Return the compiled step on the tensors that the model has now; what was compiled before is used again."""
        found: Callable[..., list[Tensor]] = torch.compile(graph.flat.bind(), dynamic=True, fullgraph=True)
        return found

    def _timed_replay(self, ids: Tensor, placed: Tensor, numbers: Numbers) -> list[Tensor]:
        """The first call compiles; its seconds are kept apart."""
        began = time.perf_counter()
        outs = self._replay(ids, placed, numbers)
        self._store.compile_seconds += time.perf_counter() - began
        return outs

    def agrees(self, got: Tensor, want: Tensor) -> bool:
        """Whether a step is the model's own forward up to rounding."""
        return close(got, want)
