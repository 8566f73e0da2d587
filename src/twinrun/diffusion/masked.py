"""What diffusion decoding asks of a model: that it looks both ways, and which id is its mask."""

from __future__ import annotations

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.model import Model


def refuse_causal(model: Model) -> None:
    """Refuse a model that looks to the left only.

    Raises:
        UnsupportedModelError: it is one.
    """
    if model.is_causal:
        raise UnsupportedModelError(
            f"{model.name} is a causal model, which cannot fill in masks; give a masked-diffusion model, such as "
            "'builtin:diffusion', or use tr.KVCache(m)"
        )


def mask_id_of(model: Model) -> int:
    """Id of the mask token.

    Raises:
        ConfigError: neither the config nor the tokenizer names one inside the vocabulary.
    """
    found = model.mask_id
    if found is None:
        raise ConfigError(
            f"{model.name} names no mask token among its {model.vocab_size} tokens; set model.config.mask_token_id to "
            "the id that it was trained with"
        )
    return found
