"""What diffusion decoding asks of a model: that it looks both ways, and which id is its mask."""

from __future__ import annotations

from twinrun.errors import ConfigError, UnsupportedModelError
from twinrun.models.model import Model


def refuse_causal(model: Model) -> None:
    """Refuse a model that looks to the left only.

    Raises:
        UnsupportedModelError: the config does not say `is_causal=False`.
    """
    if getattr(model.config, "is_causal", True) is not False:
        raise UnsupportedModelError(
            f"{model.name} is a causal model, which cannot fill in masks; diffusion decoding needs a masked-diffusion "
            "model, such as 'builtin:diffusion'"
        )


def mask_id_of(model: Model) -> int:
    """Id of the mask token, from the config or the tokenizer.

    Raises:
        ConfigError: neither names one, or it lies outside the vocabulary.
    """
    for holder in (model.config, model.tokenizer):
        found = getattr(holder, "mask_token_id", None)
        if found is not None:
            if not 0 <= int(found) < model.vocab_size:
                raise ConfigError(
                    f"mask token {found} of {model.name} is outside its vocabulary of {model.vocab_size}; "
                    "correct config.mask_token_id"
                )
            return int(found)
    raise ConfigError(
        f"{model.name} names no mask token; set model.config.mask_token_id to the id it was trained with"
    )
