"""LLaDA checkpoints in transformers' own Llama classes: the names of the tensors and the fields of the config.

LLaDA is a Llama whose attention looks both ways. In float32 `LlamaForCausalLM` with `is_causal=False` gives the
logits of the original code bit for bit, so no code of the checkpoint is needed, only its names: `ff_out` is the
down projection inside a block and the head at the top.

Source: Nie et al. 2025, arXiv:2502.09992; names and fields as in the checkpoints GSAI-ML/LLaDA-8B-Base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import LlamaConfig

from twinrun.errors import CheckpointError, UnsupportedModelError

MODEL_TYPE = "llada"
_TOP = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_BLOCK = re.compile(r"model\.transformer\.(?:blocks|block_groups\.(\d+))\.(\d+)\.(\w+)\.weight")
# What a Llama is, in LLaDA's words. Another value means another architecture under the same model type.
_LLAMA = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
}


def to_llama_name(name: str, group: int = 1) -> str:
    """Name of a LLaDA tensor in transformers' Llama; `group` is the checkpoint's `block_group_size`.

    Raises:
        CheckpointError: a name that LLaDA does not have.

    Example:
        >>> to_llama_name("model.transformer.blocks.3.ff_out.weight")
        'model.layers.3.mlp.down_proj.weight'
        >>> to_llama_name("model.transformer.block_groups.1.0.ff_out.weight", group=2)
        'model.layers.2.mlp.down_proj.weight'
    """
    if name in _TOP:
        return _TOP[name]
    found = _BLOCK.fullmatch(name)
    if found is None or found[3] not in _IN_BLOCK:
        raise CheckpointError(
            f"{name} is no tensor of a LLaDA checkpoint; give a folder in LLaDA's own layout"
        )
    return f"model.layers.{int(found[1] or 0) * group + int(found[2])}.{_IN_BLOCK[found[3]]}.weight"


def to_llada_names(names: Iterable[str], group: int = 1) -> dict[str, str]:
    """LLaDA name of each tensor of a Llama, for blocks in groups of `group`.

    Raises:
        CheckpointError: a tensor that LLaDA has no place for.
    """
    inside = {llama: llada for llada, llama in _IN_BLOCK.items()}
    top = {llama: llada for llada, llama in _TOP.items()}
    found = {}
    for name in names:
        part = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        if name in top:
            found[name] = top[name]
        elif part is not None and part[2] in inside:
            layer = int(part[1])
            block = f"blocks.{layer}" if group == 1 else f"block_groups.{layer // group}.{layer % group}"
            found[name] = f"model.transformer.{block}.{inside[part[2]]}.weight"
        else:
            raise CheckpointError(f"{name} has no place in a LLaDA checkpoint; only Llama's own tensors have")
    return found


def llama_names(config: LlamaConfig) -> list[str]:
    """Every tensor that a LLaDA of this config has, by its name in a Llama."""
    blocks = [
        f"model.layers.{i}.{part}.weight"
        for i in range(config.num_hidden_layers)
        for part in _IN_BLOCK.values()
    ]
    return blocks + [
        name for name in _TOP.values() if name != "lm_head.weight" or not config.tie_word_embeddings
    ]


def to_llama_config(fields: Mapping[str, Any], name: str = "this checkpoint") -> LlamaConfig:
    """Llama config of a LLaDA `config.json`; every number is read from the file, none is a default.

    Args:
        fields: the parsed `config.json`.
        name: for messages.

    Raises:
        UnsupportedModelError: another model type, or a LLaDA variant that is no Llama (names the field).
        CheckpointError: a field is missing.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise UnsupportedModelError(f"{name} has model_type {fields.get('model_type')!r}, not {MODEL_TYPE!r}")
    try:
        for key, value in _LLAMA.items():
            if fields[key] != value:
                raise UnsupportedModelError(
                    f"{name} has {key}={fields[key]!r}; only LLaDA models with {key}={value!r} can be run"
                )
        heads, width = fields["n_heads"], fields["d_model"]
        config = LlamaConfig(
            vocab_size=fields["embedding_size"] or fields["vocab_size"],
            hidden_size=width,
            intermediate_size=fields["mlp_hidden_size"] or fields["mlp_ratio"] * width,
            num_hidden_layers=fields["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=1 if fields.get("multi_query_attention") else fields["n_kv_heads"] or heads,
            max_position_embeddings=fields["max_sequence_length"],
            rms_norm_eps=fields["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": float(fields["rope_theta"])},
            tie_word_embeddings=fields["weight_tying"],
            use_cache=False,
            attention_bias=False,
            mlp_bias=False,
            hidden_act="silu",
            bos_token_id=None,
            eos_token_id=fields["eos_token_id"],
            pad_token_id=fields["pad_token_id"],
        )
        config.mask_token_id = fields["mask_token_id"]
        config.rope_full_precision = fields["rope_full_precision"]
        config.block_group_size = fields["block_group_size"]
    except KeyError as error:
        raise CheckpointError(f"config.json of {name} lacks {error.args[0]!r}; restore the file") from error
    config.is_causal = False  # transformers builds the mask by it
    return config


def to_llada_fields(config: LlamaConfig, mask_token_id: int) -> dict[str, Any]:
    """`config.json` of a LLaDA checkpoint for a bidirectional Llama: the inverse of `to_llama_config`.

    Raises:
        UnsupportedModelError: the model is causal, or its heads are not as wide as width over heads.
    """
    if getattr(config, "is_causal", True) is not False:
        raise UnsupportedModelError("a causal model is no LLaDA; its config needs is_causal=False")
    if (config.head_dim or 0) * config.num_attention_heads != config.hidden_size:
        raise UnsupportedModelError("LLaDA's heads are as wide as d_model over n_heads; this model's are not")
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": MODEL_TYPE,
        **_LLAMA,
        "block_group_size": getattr(config, "block_group_size", 1),
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "mlp_hidden_size": config.intermediate_size,
        "mlp_ratio": None,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_position_embeddings,
        "rope_theta": dict(config.rope_parameters or {})["rope_theta"],
        "rope_full_precision": getattr(config, "rope_full_precision", True),
        "rms_norm_eps": config.rms_norm_eps,
        "weight_tying": config.tie_word_embeddings,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
        "bias_for_layer_norm": False,
        "mask_token_id": mask_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "use_cache": False,
        "dtype": "bfloat16",
    }
