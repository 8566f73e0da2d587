"""Bytes that a runner's KV cache holds, whatever its class: the cache is seen on its way into the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

ARGUMENT = "past_key_values"
MAX_DEPTH = 6


class SeenCache:
    """The cache object that the newest forward was handed; None until there is one."""

    def __init__(self) -> None:
        """Nothing seen."""
        self.cache: Any = None

    @property
    def num_bytes(self) -> int | None:
        """Bytes of its tensors now, allocated slots that are empty included; None without a cache."""
        return None if self.cache is None else held_bytes(self.cache)


@contextmanager
def watching(module: Any) -> Iterator[SeenCache]:
    """Watch which cache the forwards of `module` are handed; the hook is gone when the block ends."""
    seen = SeenCache()
    if not isinstance(module, nn.Module):
        yield seen
        return

    def hook(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get(ARGUMENT) is not None:
            seen.cache = kwargs[ARGUMENT]

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def held_bytes(holder: Any) -> int:
    """Bytes of all tensors that an object holds, in its attributes and in lists, tuples and dicts of them.

    A storage counts once, whatever number of tensors look at it. Modules are left out.

    Example:
        >>> x = torch.zeros(4)
        >>> held_bytes({"keys": [x, x[:2]], "values": torch.zeros(2)})
        24
    """
    return sum(storages(holder).values())


def storages(holder: Any) -> dict[tuple[str, int], int]:
    """Return the storages behind all tensors of an object: (device, address) -> bytes. See `held_bytes`."""
    found: dict[tuple[str, int], int] = {}
    _collect(holder, found, set(), 0)
    return found


def _collect(value: Any, found: dict[tuple[str, int], int], visited: set[int], depth: int) -> None:
    if isinstance(value, Tensor):
        parts = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else None
        if parts:  # a quantised tensor is a wrapper around others
            for name in parts:
                _collect(getattr(value, name), found, visited, depth + 1)
            return
        storage = value.untyped_storage()
        found[(str(value.device), storage.data_ptr())] = storage.nbytes()
        return
    if isinstance(value, nn.Module | str | bytes | type) or depth > MAX_DEPTH or id(value) in visited:
        return
    visited.add(id(value))
    if isinstance(value, dict):
        inside: Any = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    else:
        inside = getattr(value, "__dict__", {}).values()
    for item in inside:
        _collect(item, found, visited, depth + 1)
