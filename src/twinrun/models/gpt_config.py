"""Sizes of the small GPT."""

from __future__ import annotations

from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig

from twinrun.errors import ConfigError


class GPTConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # unannotated there
    """Sizes of a `GPTForCausalLM`. transformers' own names (`hidden_size`, ...) read and write the same numbers.

    Args:
        vocab_size: rows of the token embedding.
        block_size: rows of the position embedding: the longest text, in tokens (`max_position_embeddings`).
        n_layer: decoder layers.
        n_head: attention heads; must divide `n_embd`.
        n_embd: width of the hidden states.
        n_inner: width inside the feed-forward part; None means 4 * `n_embd`.
        norm: "pre" normalises what enters each part and once more before the head (GPT-2); "post" normalises
            each sum behind a part and nothing else (the first GPT).
        dropout: probability of dropping a value behind each part, while training only.
        tie_word_embeddings: whether the head shares its weight with the token embedding.

    Raises:
        ConfigError: heads that do not divide the width, or an unknown kind of norm.

    Example:
        >>> GPTConfig(block_size=128).max_position_embeddings
        128
    """

    model_type = "twinrun-gpt"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012  transformers reads it from the class
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
    }

    vocab_size: int = 258
    block_size: int = 1024
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 256
    n_inner: int | None = None
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Check what no model could be built from."""
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_head must divide n_embd, got {self.n_head} and {self.n_embd}")
        if self.norm not in ("pre", "post"):
            raise ConfigError(f"norm must be 'pre' or 'post', got {self.norm!r}")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # unannotated there
