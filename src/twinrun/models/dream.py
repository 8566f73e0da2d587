"""Dream checkpoints in transformers' own Qwen2 classes: the fields of the config. The tensors have Qwen2's names.

Dream was adapted from a causal Qwen2: attention looks both ways, but the logits that stand at a position are those of
the next one. Who decodes shifts them right by one (`Model.shifts_logits`).

Source: Ye et al. 2025, arXiv:2508.15487; fields as in the checkpoints Dream-org/Dream-v0-Base-7B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Config

from twinrun.errors import CheckpointError, UnsupportedModelError

MODEL_TYPE = "Dream"
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
    "eos_token_id",
    "pad_token_id",
)
# Another value means another attention or other positions under the same model type.
_QWEN2 = {"rope_scaling": None, "use_sliding_window": False}


def to_qwen2_config(fields: Mapping[str, Any], name: str = "this checkpoint") -> Qwen2Config:
    """Qwen2 config of a Dream `config.json`; every number is read from the file, none is a default.

    Args:
        fields: the parsed `config.json`.
        name: for messages.

    Raises:
        UnsupportedModelError: another model type, or a variant that Qwen2 has no words for (names the field).
        CheckpointError: a field is missing.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise UnsupportedModelError(f"{name} has model_type {fields.get('model_type')!r}, not {MODEL_TYPE!r}")
    try:
        for key, value in _QWEN2.items():
            if fields[key] != value:
                raise UnsupportedModelError(
                    f"{name} has {key}={fields[key]!r}; only Dream models with {key}={value!r} can be run"
                )
        config = Qwen2Config(
            **{key: fields[key] for key in _SAME},
            rope_parameters={"rope_type": "default", "rope_theta": float(fields["rope_theta"])},
            use_cache=False,
            bos_token_id=fields.get("bos_token_id"),
        )
        config.mask_token_id = fields["mask_token_id"]
    except KeyError as error:
        raise CheckpointError(f"config.json of {name} lacks {error.args[0]!r}; restore the file") from error
    config.is_causal = False
    config.shifts_logits = True
    return config
