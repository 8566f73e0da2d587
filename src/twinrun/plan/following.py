"""The block in which a model without numbers is run and its bytes are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model
from twinrun.models.skeleton import quiet
from twinrun.plan.alive import AliveBytes, KernelShapes


@contextmanager
def following(model: Model, device: str, known: Sequence[Tensor] = ()) -> Iterator[AliveBytes]:
    """Count tensors made inside the block, weights and `known` ones left out, with the kernels of `device`.

    Raises:
        UnsupportedModelError: the forward needs numbers; names the family and what it asked for.
    """
    alive = AliveBytes([*model.model.parameters(), *model.model.buffers(), *known])
    try:
        with quiet(), torch.no_grad(), alive, KernelShapes(alive, device):
            yield alive
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        why = " ".join(str(error).split())[:120]
        raise UnsupportedModelError(
            f"the forward of {type(model.core).__name__} cannot be followed without numbers ({why}); measure it "
            "with twinrun.bench.memory.peak_extra_bytes"
        ) from error
