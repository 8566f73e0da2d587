"""Which models cannot be pruned, each in one line."""

from __future__ import annotations

from twinrun.errors import UnsupportedModelError
from twinrun.models.model import Model
from twinrun.models.positions import layer_windows


def refuse_model(model: Model) -> None:
    """Refuse a model whose layers cannot see fewer tokens than their neighbours.

    Raises:
        UnsupportedModelError: sliding, chunked or linear attention, an encoder, or a compiled model.
    """
    if model.is_compiled:
        raise UnsupportedModelError(
            f"{model.name} is compiled, and its code would be compiled anew for every prompt length; prune the plain "
            "module"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{model.name} is an encoder-decoder; pruning needs a decoder-only model")
    windows = layer_windows(model)
    sliding = next((i for i, window in enumerate(windows) if window), None)
    if sliding is not None:
        raise UnsupportedModelError(
            f"layer {sliding} of {model.name} sees a sliding window of {windows[sliding]} tokens, whose cache counts "
            "tokens that pruning drops; give a model with full attention in every layer"
        )
