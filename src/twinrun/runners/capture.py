"""Capture one decode step of a model as a flat graph of ATen operators, with the filled length as a symbol.

The model's own forward runs once on fake tensors (shapes, no numbers) under `make_fx`; what it asks of torch is written
down, and all of its Python is gone. A step writes one key and one value a layer into its slot and attends to the
filled slots. Where the forward takes a branch on a length, the branch is kept as a condition of the graph.

Source: torch.fx `make_fx` (Reed et al. 2022, arXiv:2112.08429) with symbolic shapes, as in torch.export.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import Cache, CacheLayerMixin  # type: ignore[attr-defined]  # its stub leaves the second out

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model
from twinrun.runners.forward import catch_output
from twinrun.runners.routing import RouteRecorder

Numbers = tuple[int, ...]
"""Of one step: tokens seen before it, then a kind of layer: slot to write, slots filled after it, slots in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is fixed in a graph.

    Attributes:
        rows: rows of the batch.
        kinds: for each layer the index of its kind; layers of one kind have the same number of slots.
        buffers: for each layer `(heads, head_dim)` of keys and of values.
        is_masked: whether a mask over padding comes in.
        dtype: of the cache.
        fixed_slots: 0, or slots that every step attends to, under a mask over the empty ones; then no shape depends on
            the length, which a CUDA graph needs.
    """

    rows: int
    kinds: tuple[int, ...]
    buffers: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    is_masked: bool
    dtype: torch.dtype
    fixed_slots: int = 0

    @property
    def num_kinds(self) -> int:
        """Number of kinds of layers."""
        return max(self.kinds) + 1


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph of one step. Inputs: ids, positions, mask or None, the numbers, then keys and values of each layer.

    Outputs: logits `[rows, 1, vocab]`, then hidden states `[rows, 1, width]` where the model streams, then what each
    router returned.
    """

    plan: Plan
    graph: GraphModule
    holds: Callable[..., bool]
    has_hidden: bool


class _TracedLayer(CacheLayerMixin):  # type: ignore[misc]  # its stub says Any
    """One layer of the cache while a step is captured: numbers are symbols, tensors are fake."""

    def __init__(self, keys: Tensor, values: Tensor, seen: Any, slot: Any, filled: Any) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self._seen, self._slot, self._filled = seen, slot, filled

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        found = []
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            store.narrow(2, self._slot, 1).copy_(new)
            found.append(store.narrow(2, 0, self._filled))
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._filled, self._seen + query_length - self._filled

    def get_seq_length(self) -> Any:
        return self._seen

    def get_max_length(self) -> int:
        return -1


class _FixedLayer(CacheLayerMixin):  # type: ignore[misc]  # its stub says Any
    """One layer while a step of fixed shapes is captured: the slot to write is a tensor, all slots are attended."""

    def __init__(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized, self._slot = keys, values, True, slot

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self._slot, key_states)
        self.values.index_copy_(2, self._slot, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        assert self.keys is not None
        return self.keys.shape[2], 0

    def get_seq_length(self) -> Any:
        """The query stands behind all slots, so that the mask over empty ones alone decides."""
        assert self.keys is not None
        return self.keys.shape[2] - 1

    def get_max_length(self) -> int:
        return -1


def capture(model: Model, plan: Plan, numbers: Numbers) -> Captured:
    """Capture the step of `model` for `plan`; `numbers` decide the branches that the forward takes.

    Raises:
        UnsupportedModelError: a forward that reads numbers out of tensors, or does what cannot be written down.

    Cost: one forward on fake tensors: half a second for four layers, some seconds for thirty.
    """
    streams = model.layout.streams  # found on real tensors, before there are fake ones
    env = ShapeEnv(duck_shape=False, specialize_zero_one=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=env)
    try:
        with torch.inference_mode(False), torch.no_grad(), mode:
            symbols = tuple(_symbol(env, number, f"n{i}") for i, number in enumerate(numbers))
            inputs = _inputs(model, plan, symbols)
            graph = make_fx(_step(model, plan), tracing_mode="real", pre_dispatch=True)(*inputs)
    except Exception as error:  # whatever the modelling code, fake tensors or fx cannot do
        raise UnsupportedModelError(
            f"one step of {type(model.core).__name__} cannot be captured as a graph "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]}); use step='eager'"
        ) from error
    holds = _conditions(env, symbols)
    if plan.fixed_slots:
        return Captured(plan, graph, lambda *now: bool(now[3] == plan.fixed_slots), streams)
    return Captured(plan, graph, holds, streams)


def _symbol(env: ShapeEnv, value: int, name: str) -> Any:
    from torch._dynamo.source import ConstantSource

    source = ConstantSource(name)
    made = env.create_unspecified_symbol(value, source)
    return env.create_symintnode(made, hint=value, source=source)


def _inputs(model: Model, plan: Plan, symbols: Sequence[Any]) -> list[Any]:
    """Fake inputs, in the order of `Captured`; called under the fake mode."""
    device = model.device
    ids = torch.zeros(plan.rows, 1, dtype=torch.long, device=device)
    positions = torch.zeros(plan.rows, 1, dtype=torch.long, device=device)
    if plan.fixed_slots:
        symbols = [plan.fixed_slots] * len(symbols)
    room = symbols[3]
    mask = torch.ones(plan.rows, room, dtype=torch.long, device=device) if plan.is_masked else None
    buffers = [
        torch.empty(plan.rows, heads, symbols[3 + 3 * kind], width, dtype=plan.dtype, device=device)
        for kind, pair in zip(plan.kinds, plan.buffers, strict=True)
        for heads, width in pair
    ]
    numbers = [torch.zeros(1, dtype=torch.long, device=device)] if plan.fixed_slots else symbols
    return [ids, positions, mask, *numbers, *buffers]


def _step(model: Model, plan: Plan) -> Callable[..., list[Tensor]]:
    """Return the function that is captured: the model's own forward on one token a row."""
    count = 1 if plan.fixed_slots else 1 + 3 * plan.num_kinds

    def step(ids: Tensor, positions: Tensor, mask: Tensor | None, *rest: Any) -> list[Tensor]:
        seen, numbers, buffers = rest[0], rest[1:count], rest[count:]
        pairs = itertools.batched(buffers, 2) if hasattr(itertools, "batched") else _pairs(buffers)
        layers: list[Any] = [
            _FixedLayer(keys, values, seen)
            if plan.fixed_slots
            else _TracedLayer(keys, values, seen, *numbers[3 * kind : 3 * kind + 2])
            for kind, (keys, values) in zip(plan.kinds, pairs, strict=True)
        ]
        kwargs: dict[str, Any] = {
            "input_ids": ids,
            "past_key_values": Cache(layers=layers),
            "use_cache": True,
        }
        if mask is not None:
            kwargs["attention_mask"] = mask if plan.fixed_slots else mask[:, : seen + 1]
        if "position_ids" in model.accepts:
            kwargs["position_ids"] = positions
        if "logits_to_keep" in model.accepts:
            kwargs["logits_to_keep"] = 1
        return _outputs(model, kwargs)

    return step


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _outputs(model: Model, kwargs: dict[str, Any]) -> list[Tensor]:
    """Run the model's own forward; return logits, hidden states and what the routers said."""
    caught: list[Tensor] = []
    with ExitStack() as undo:
        if model.layout.streams:
            undo.callback(model.layout.body.register_forward_hook(catch_output(caught)).remove)
        routes = undo.enter_context(RouteRecorder.on(model))
        output = model.core(**kwargs)
        found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        logits: Tensor = output[0] if found is None else found
        return [logits[:, -1:], *(h[:, -1:] for h in caught), *routes.take()]


def _conditions(env: ShapeEnv, symbols: Sequence[Any]) -> Callable[..., bool]:
    """Return a function of the numbers of a step: whether the forward would have taken the same branches."""
    names = [str(symbol.node._expr) for symbol in symbols]  # not .expr, in which equal symbols are merged
    known = set(names)
    texts = []
    for guard in env.guards:
        free = {str(s) for s in guard.expr.free_symbols}
        if not free <= known:
            raise UnsupportedModelError(
                f"the graph depends on {guard.expr}, which is not known before a step"
            )
        texts.append(_as_python(guard.expr))
    body = " and ".join(f"({text})" for text in dict.fromkeys(texts)) or "True"
    scope: dict[str, Any] = {}
    exec(f"def holds({', '.join(names)}):\n    return bool({body})", {"Max": max, "Min": min}, scope)  # noqa: S102  text of our own making
    holds: Callable[..., bool] = scope["holds"]
    return holds


def _as_python(expr: Any) -> str:
    from torch.utils._sympy.printers import PythonPrinter

    text: str = PythonPrinter().doprint(expr)
    return text
