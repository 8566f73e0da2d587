"""Say by path where a fault sits; every path is read off the model, none is written down for an architecture."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from torch import nn

from twinrun.faults.parts import attention_of, attentions, middle
from twinrun.models.layout import probe_logits
from twinrun.models.model import Model


def paths(model: Model, parts: Iterable[nn.Module | None]) -> tuple[str, ...]:
    """Paths of modules in `model.core`, in its own order."""
    wanted = {id(part) for part in parts}
    return tuple(name for name, part in model.core.named_modules() if id(part) in wanted)


def first_called(model: Model, parts: Iterable[nn.Module]) -> tuple[str, ...]:
    """Path of the one of `parts` that runs first.

    Cost: one forward of six tokens.
    """
    order: list[nn.Module] = []
    with ExitStack() as undo:
        for part in parts:
            undo.callback(part.register_forward_pre_hook(lambda m, _args: order.append(m)).remove)
        probe_logits(model.core)
    return paths(model, order[:1])


def first_attention(model: Model) -> tuple[str, ...]:
    """Attention of the first layer that has one."""
    return paths(model, attentions(model)[:1])


def middle_attention(model: Model) -> tuple[str, ...]:
    """Attention of the layer halfway down."""
    return paths(model, [attention_of(middle(list(model.layout.layers)))])


def head(model: Model) -> tuple[str, ...]:
    """The head."""
    return paths(model, [model.layout.head])


def behind_the_head(_model: Model) -> tuple[str, ...]:
    """What follows the head belongs to no module but the whole."""
    return ("",)
