"""The same module in the layers before the one that is to blame: does it compute something else there, too?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from twinrun.numerics.precision import parse_dtype
from twinrun.verify.activations import layer_of
from twinrun.verify.called import Held, called
from twinrun.verify.gaps import Noise, gaps
from twinrun.verify.pinpoint import first_gap
from twinrun.verify.watch import Forward


def elders_agree(
    reference: Any,
    candidate: Any,
    module: str,
    unit: str,
    held: tuple[Held, Held],
    forward: Forward,
    row: Sequence[int],
) -> bool:
    """Whether the module of the same name agrees in every earlier layer, one precision up.

    It is tried with the arguments that the module to blame had, which its own layer gives it again.

    Args:
        reference: trusted side.
        candidate: side on trial.
        module: path of the module to blame; outside of layers it has no elders.
        unit: path of its layer.
        held: what the layers of either side were called with.
        forward: the forward that `held` is of.
        row: the text.

    Returns:
        False also where an earlier one cannot be called.

    Cost: one call of the layer on either side; three calls of the module for each layer before it, two of them one
    precision up.
    """
    layer = layer_of(module)
    if layer is None:
        return True
    inner = []
    for side, given in zip((reference, candidate), held, strict=True):
        inner.append(Held())
        with ExitStack() as undo:
            inner[-1].attach(side.module, module.__eq__, undo)
            if called(side, unit, given, row, forward, "".__eq__, up=False) is None:
                return False
        if module not in inner[-1].calls:
            return False
    noise = Noise.one_up(parse_dtype(reference.dtype))
    there = {name for name, _ in candidate.module.named_modules()}
    for number in range(layer):
        elder = f"{unit.rpartition('.')[0]}.{number}{module.removeprefix(unit)}"
        if elder not in there:
            continue
        mine, theirs = (Held(calls={elder: one.calls[module]}) for one in inner)
        own, truth, tried = (
            called(side, elder, given, row, forward, elder.__eq__, up=up)
            for side, given, up in (
                (reference, mine, False),
                (reference, mine, True),
                (candidate, theirs, True),
            )
        )
        if own is None or truth is None or tried is None:
            return False
        if first_gap(gaps(own, truth, tried, 0, noise))[0] is not None:
            return False
    return True
