"""What all faults of diffusion decoding have in common: a runner shows them, and only on a masked-diffusion model."""

from __future__ import annotations

from functools import partial

from twinrun.faults.fault import Fault
from twinrun.models.model import Model


def looks_both_ways(model: Model) -> str | None:
    """None for a masked-diffusion model, else the reason why it cannot have the fault."""
    if not model.is_causal and model.mask_id is not None:
        return None
    return "it is a causal model; diffusion decoding needs a masked-diffusion model"


canvas_fault = partial(Fault, kind="runner", way="diffusion", reason_against=looks_both_ways)
"""A `Fault` of a diffusion runner; the trace judges it."""
