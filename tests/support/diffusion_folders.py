"""Checkpoint folders of masked-diffusion models with random weights, in LLaDA's and in Dream's own layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.support.tiny import tiny_tokenizer
from twinrun.models.llada import to_llada_fields, to_llada_names

MASK = 40


def llada_folder(
    path: Path, *, tied: bool = False, kv_heads: int = 2, group: int = 1, layers: int = 3, seed: int = 5
) -> Path:
    """A LLaDA folder with random weights, large enough that every part of the network matters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=256, rms_norm_eps=1e-5, is_causal=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=tied,
        initializer_range=0.2, bos_token_id=None, eos_token_id=1, pad_token_id=2, block_group_size=group,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    weights = {k: w.detach() + 0.1 * torch.randn_like(w) for k, w in model.named_parameters()}
    names = to_llada_names(weights, group)
    path.mkdir()
    save_file({names[k]: w for k, w in weights.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(to_llada_fields(config, MASK)))
    return path


def sharded(path: Path) -> Path:
    """Split the weights of a folder into three files with an index, as large checkpoints are."""
    from safetensors.torch import load_file

    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    index = {key: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, key in enumerate(sorted(weights))}
    for file in set(index.values()):
        save_file({key: weights[key] for key in weights if index[key] == file}, path / file)
    total = sum(w.nbytes for w in weights.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (path / "model.safetensors.index.json").write_text(text)
    return path


def dream_folder(path: Path, *, tokenizer: bool = True) -> Path:
    """A Dream folder: Qwen2's tensors under Dream's config, which asks for code of its own for model and tokenizer."""
    torch.manual_seed(6)
    core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    fields = {
        "vocab_size": len(core["vocab"]) + 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "tie_word_embeddings": False, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 500.0}
    Qwen2ForCausalLM(Qwen2Config(**fields, rope_parameters=rope, initializer_range=0.2)).save_pretrained(path)
    fields |= {
        "model_type": "Dream", "rope_theta": 500.0, "rope_scaling": None, "use_sliding_window": False,
        "mask_token_id": len(core["vocab"]), "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(fields))
    if tokenizer:
        (path / "vocab.json").write_text(json.dumps(core["vocab"]))
        (path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in core["merges"]))
        own = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
        text = json.dumps({"tokenizer_class": "DreamTokenizer", "auto_map": own, "mask_token": "<|mask|>"})
        (path / "tokenizer_config.json").write_text(text)
    return path
