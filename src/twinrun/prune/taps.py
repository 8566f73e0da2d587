"""The input of decoder layers: read, or read and replaced, by hooks that are gone when the block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from twinrun.errors import UnsupportedModelError
from twinrun.models.layer_inputs import LayerInputs
from twinrun.models.model import Model

Tap = Callable[[int, Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]] | None]
"""(layer, hidden states `[rows, tokens, width]`, the layer's other arguments by name) to what replaces both or None."""


class Enough(Exception):
    """Raised by a tap that has seen all it needs: the layers behind it need not run. Internal."""


@contextmanager
def tapped(model: Model, layers: Iterable[int], tap: Tap) -> Iterator[None]:
    """Call `tap` at the input of each of `layers` in every forward inside the block."""
    with ExitStack() as undo:
        for index in layers:
            layer = model.layout.layers[index]
            handle = layer.register_forward_pre_hook(_hook(index, layer, tap), with_kwargs=True)
            undo.callback(handle.remove)
        yield


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Switch off the gradients of all weights inside the block; each is as before afterwards."""
    asked = [p for p in model.core.parameters() if p.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)


def _hook(index: int, layer: nn.Module, tap: Tap) -> Any:
    inputs = LayerInputs.of(layer)

    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = inputs.named(args, kwargs)
        hidden = named.pop(inputs.names[0], None)
        if not isinstance(hidden, Tensor):
            raise UnsupportedModelError(
                f"layer {index} is not handed a tensor of hidden states; its prompt cannot be pruned"
            )
        found = tap(index, hidden, named)
        return None if found is None else ((found[0],), found[1])

    return hook
