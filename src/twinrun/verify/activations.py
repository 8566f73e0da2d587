"""What one run leaves behind: fingerprints of what every module got and gave, row by row, at absolute positions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from twinrun.verify.watch import Forward

By = Literal["module", "layer", "step"]


class Slot(NamedTuple):
    """One tensor that a module gets or gives."""

    module: str
    is_input: bool
    number: int
    """Which of the module's tensors, in the order of its signature or its result."""


@dataclass(slots=True)
class Row:
    """One text's tables. Tensors are `[tokens, ...]`, NaN (or -1) where nothing was computed."""

    tokens: list[int]
    prints: dict[Slot, Tensor] = field(default_factory=dict)
    """`[tokens, 17]` fingerprints."""
    keys: dict[str, Tensor] = field(default_factory=dict)
    """Attention module -> `[tokens]` keys that the query at each position may attend to."""
    position_ids: Tensor | None = None
    step_of: Tensor | None = None
    """`[tokens]` forward in which each position was computed."""


@dataclass(slots=True)
class Activations:
    """All rows of one run, and the order in which modules finished."""

    rows: list[Row]
    order: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    """Class names of modules."""
    forwards: list[Forward] = field(default_factory=list)
    attentions: set[str] = field(default_factory=set)
    widths: dict[Slot, int] = field(default_factory=dict)
    """Features of each tensor; -1 where it changed between forwards (attention weights) and was given up."""


def flatten(value: Any) -> Iterator[Tensor]:
    """Tensors inside tuples, lists and dicts that hold numbers (not ids, boolean masks or caches)."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.ndim >= 2:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from flatten(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from flatten(inner)


def as_rows(tensor: Tensor, rows: int, width: int) -> Tensor | None:
    """Lay a tensor out as `[rows or 1, width or 1, features]`, or None where its positions cannot be told.

    Known layouts: [rows, width, ...], [rows * width, features], heads first [rows, heads, width, features], and
    one row for all ([1, width, ...], rotary tables).
    """
    shape = tensor.shape
    if tensor.ndim == 4 and shape[0] in (rows, 1) and shape[2] == width and shape[1] != width:
        tensor = tensor.transpose(1, 2)
    elif tensor.ndim == 4 and shape[1] == shape[2] == width and width > 1:
        return None  # as many heads as tokens: which is which cannot be told
    elif tensor.ndim == 2 and shape[0] == rows * width:
        tensor = tensor.reshape(rows, width, -1)
    elif tensor.ndim < 3 or shape[0] not in (rows, 1) or shape[1] not in (width, 1):
        return None
    return tensor.reshape(tensor.shape[0], tensor.shape[1], -1)


def modules_by(by: By) -> Callable[[str], bool]:
    """Which modules are looked at, by name: all, those outside of layers and the layers themselves, or the model."""
    if by == "module":
        return lambda _name: True
    if by == "step":
        return lambda name: name == ""
    return lambda name: layer_of(name) is None or name.rpartition(".")[2].isdigit()


def layer_of(name: str) -> int | None:
    """Number of the decoder layer in a module's path; None outside of the layers."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None
