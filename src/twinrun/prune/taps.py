"""The input of decoder layers: read, or read and replaced, by hooks that are gone when the block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model

Tap = Callable[[int, Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]] | None]
"""(layer, hidden states `[rows, tokens, width]`, keyword arguments) to what replaces both, or None."""


@contextmanager
def tapped(model: Model, layers: Iterable[int], tap: Tap) -> Iterator[None]:
    """Call `tap` at the input of each of `layers` in every forward inside the block."""
    with ExitStack() as undo:
        for index in layers:
            hook = _hook(index, tap)
            handle = model.layout.layers[index].register_forward_pre_hook(hook, with_kwargs=True)
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


def _hook(index: int, tap: Tap) -> Any:
    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            raise UnsupportedModelError(
                f"layer {index} is not handed a tensor of hidden states; it cannot be pruned"
            )
        found = tap(index, hidden, kwargs)
        if found is None:
            return None
        new, changed = found
        if args:
            return (new, *args[1:]), changed
        return args, {**changed, "hidden_states": new}

    return hook
