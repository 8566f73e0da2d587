"""LLaDA and Dream checkpoints opened in transformers' own classes: no code that comes with them is run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from twinrun.errors import CheckpointError, UnsupportedModelError
from twinrun.models import dream, llada
from twinrun.models.bidirectional import is_translated
from twinrun.models.rotary import FullRotary, full_rotary_name

_CONFIGS = {llada.MODEL_TYPE: llada.to_llama_config, dream.MODEL_TYPE: dream.to_qwen2_config}


def translated(fields: dict[str, Any], name: str) -> PreTrainedConfig | None:
    """Transformers' config of a LLaDA or Dream `config.json`; None for every other model type.

    Raises:
        UnsupportedModelError: a variant that transformers' classes cannot run.
        CheckpointError: a field is missing.
    """
    return _CONFIGS[fields["model_type"]](fields, name) if is_translated(fields) else None


def read_translated(
    path: str, fields: dict[str, Any], name: str, attention: str | None, **options: Any
) -> Any:
    """Open a LLaDA or Dream checkpoint in transformers' own Llama or Qwen2; no code of the checkpoint is run.

    Args:
        path: folder or hub name.
        fields: its parsed `config.json`.
        name: for messages.
        attention: transformers' attention implementation; None is the default.
        **options: for `from_pretrained`: dtype, revision.

    Raises:
        CheckpointError: a tensor is missing or unknown, or a config field is missing.
        UnsupportedModelError: a variant that transformers' classes cannot run.
        ConfigError: an attention that does not go with rotary positions in float32.
    """
    config: Any = translated(fields, name)
    if config is None:
        raise UnsupportedModelError(
            f"{name} has model_type {fields.get('model_type')!r}; LLaDA and Dream are read here"
        )
    names: dict[str, str] = {}
    if config.model_type == "llama":
        names = llada.to_llada_names(llada.llama_names(config), config.block_group_size)
    if getattr(config, "rope_full_precision", False):
        attention = full_rotary_name(attention)
    make: Any = LlamaForCausalLM if names else Qwen2ForCausalLM
    module, info = make.from_pretrained(
        path,
        config=config,
        key_mapping={f"^{re.escape(theirs)}$": ours for ours, theirs in names.items()},
        use_safetensors=True,
        output_loading_info=True,
        **({"attn_implementation": attention} if attention else {}),
        **options,
    )
    for kind, word in (("unexpected_keys", "an unknown tensor"), ("missing_keys", "no tensor for")):
        for key in sorted(info[kind]):
            raise CheckpointError(f"{name} has {word} {names.get(key, key)}; copy the weights again")
    module.__dict__.pop("_weight_conversions", None)  # else save_pretrained would write LLaDA's names again
    return looks_both_ways(module)


def read_llada(folder: Path) -> Any:
    """Open a LLaDA folder as transformers' Llama in float32: the module alone. `twinrun.load` is the way in.

    Raises:
        CheckpointError: as `read_translated`.
        UnsupportedModelError: as `read_translated`.
    """
    fields = json.loads((folder / "config.json").read_text())
    return read_translated(str(folder), fields, folder.name, None, dtype=torch.float32)


def looks_both_ways(module: Any) -> Any:
    """Set up a module of transformers whose config says `is_causal=False`; others are returned as they are.

    Attention called layer by layer is told too, and the rotary table is replaced where the config asks for float32.
    """
    config: Any = getattr(module, "config", None)
    if getattr(config, "is_causal", None) is not False:
        return module
    for part in module.modules():
        if hasattr(part, "is_causal"):
            part.is_causal = False
    if getattr(config, "rope_full_precision", False):
        table = module.model.rotary_emb
        if type(table) is not FullRotary:
            if type(table) is not LlamaRotaryEmbedding:
                raise UnsupportedModelError(
                    f"{type(module).__name__} has no rotary positions in float32; set rope_full_precision=false"
                )
            module.set_attn_implementation(full_rotary_name(config._attn_implementation))
            module.model.rotary_emb = FullRotary(config)
    return module


def read_tokenizer(path: str, fields: dict[str, Any], **options: Any) -> Any:
    """The tokenizer of a checkpoint, or None where there is none (it is usable all the same: prompts are ids).

    LLaDA's and Dream's are read without their own code, which Dream's configuration asks for: it is Qwen2's renamed.
    """
    if not is_translated(fields):
        return _first_tokenizer(path, [AutoTokenizer], options)
    options = options | {"trust_remote_code": False}
    is_dream = fields["model_type"] == dream.MODEL_TYPE
    kinds = [AutoTokenizer, Qwen2Tokenizer] if is_dream else [AutoTokenizer, PreTrainedTokenizerFast]
    return _first_tokenizer(path, kinds, options | {"config": PreTrainedConfig()})


def _first_tokenizer(path: str, kinds: list[Any], options: dict[str, Any]) -> Any:
    for kind in kinds:
        try:
            found = kind.from_pretrained(path, **options)
        except (OSError, ValueError, KeyError, ImportError):
            continue
        if len(found.get_vocab()) > len(found.all_special_tokens):  # Qwen2's is made from nothing too
            return found
    return None
