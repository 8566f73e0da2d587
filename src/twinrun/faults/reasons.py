"""Why a model cannot have a fault: the reasons that several faults share. None means that it can."""

from __future__ import annotations

from twinrun.faults.parts import attentions
from twinrun.models.model import Model
from twinrun.verify.probes import boundaries


def no_attention(model: Model) -> str | None:
    """The fault changes what attention sees or keeps."""
    return None if attentions(model) else "it has no attention module that takes an attention mask"


def no_position_ids(model: Model) -> str | None:
    """The fault hands over other position ids."""
    return None if "position_ids" in model.accepts else "its forward takes no position_ids"


def no_window(model: Model) -> str | None:
    """The fault needs attention that forgets."""
    windows = any(name == "sliding window" for name, _ in boundaries(model))
    return None if windows else "it has no sliding window in use"
