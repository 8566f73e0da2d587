"""LLaDA's names and config fields, against a forward that is written out from them; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.diffusion_folders import MASK, llada_folder
from tests.support.plain_llada import plain_llada_logits
from twinrun.errors import CheckpointError, UnsupportedModelError
from twinrun.models.llada import (
    to_llada_fields,
    to_llada_names,
    to_llama_config,
    to_llama_name,
)
from twinrun.models.translate import read_llada

IDS = [3, 40, 7, 7, 25, 40, 0, 31]


def edit(path: Path, **fields: Any) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))
    return path


@pytest.mark.parametrize(("tied", "kv_heads"), [(False, 4), (True, 4), (False, 2), (True, 1)])
def test_it_computes_what_its_names_say(tmp_path: Path, tied: bool, kv_heads: int) -> None:
    path = llada_folder(tmp_path / "m", tied=tied, kv_heads=kv_heads)
    weights, fields = load_file(path / "model.safetensors"), json.loads((path / "config.json").read_text())
    assert ("model.transformer.ff_out.weight" in weights) is not tied
    model = read_llada(path)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([IDS])).logits[0].double()
    far = 1e-4 * float(logits.abs().max())
    assert float((logits - plain_llada_logits(weights, fields, IDS)).abs().max()) < far
    for wrong in ("causal", "gate", "theta"):
        spoilt = plain_llada_logits(weights, fields, IDS, wrong)
        assert float((logits - spoilt).abs().max()) > 10 * far, wrong
    assert model.config.mask_token_id == MASK
    assert model.config.eos_token_id == 1


def test_names_go_there_and_back() -> None:
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    names = dict(LlamaForCausalLM(config).named_parameters())
    there = to_llada_names(names)
    assert {to_llama_name(name) for name in there.values()} == set(names)
    assert len(there) == 2 * 9 + 3  # the published 8B model has 32 blocks and 291 tensors
    assert there["model.layers.1.mlp.down_proj.weight"] == "model.transformer.blocks.1.ff_out.weight"
    assert there["lm_head.weight"] == "model.transformer.ff_out.weight"


def test_blocks_in_groups_are_counted_through(tmp_path: Path) -> None:
    plain, grouped = (llada_folder(tmp_path / str(g), layers=4, group=g) for g in (1, 2))
    names = load_file(grouped / "model.safetensors")
    assert "model.transformer.block_groups.1.0.q_proj.weight" in names
    assert to_llama_name("model.transformer.block_groups.1.0.q_proj.weight", 2).startswith("model.layers.2.")
    one, other = (read_llada(path).state_dict() for path in (plain, grouped))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_widths_that_the_file_leaves_to_others(tmp_path: Path) -> None:
    """`null` means: one key head a query head, as many embeddings as words, a multiple of the width."""
    fields = json.loads((llada_folder(tmp_path / "m") / "config.json").read_text())
    read = to_llama_config(
        fields | {"n_kv_heads": None, "embedding_size": None, "mlp_hidden_size": None, "mlp_ratio": 3}
    )
    assert (read.num_key_value_heads, read.vocab_size, read.intermediate_size) == (4, 41, 96)
    assert (
        to_llama_config(fields | {"n_kv_heads": None, "multi_query_attention": True}).num_key_value_heads == 1
    )


def test_fields_go_there_and_back(tmp_path: Path) -> None:
    fields = json.loads((llada_folder(tmp_path / "m") / "config.json").read_text())
    assert to_llada_fields(to_llama_config(fields), fields["mask_token_id"]) == fields


@pytest.mark.parametrize(
    "key",
    ["d_model", "n_layers", "n_heads", "mlp_hidden_size", "embedding_size", "max_sequence_length", "rope_theta",
     "rms_norm_eps", "weight_tying", "mask_token_id", "eos_token_id", "block_type", "include_bias",
     "rope_full_precision", "block_group_size"],
)  # fmt: skip
def test_no_field_has_a_default(tmp_path: Path, key: str) -> None:
    fields = json.loads((llada_folder(tmp_path / "m") / "config.json").read_text())
    del fields[key]
    with pytest.raises(CheckpointError, match=f"lacks '{key}'"):
        to_llama_config(fields)


@pytest.mark.parametrize(
    ("key", "value"),
    [("alibi", True), ("attention_layer_norm", True), ("block_type", "sequential")],
)
def test_a_variant_that_is_no_llama_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=f"m has {key}={value!r}"):
        read_llada(edit(llada_folder(tmp_path / "m"), **{key: value}))


def test_a_missing_or_unknown_tensor_is_named(tmp_path: Path) -> None:
    path = llada_folder(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    gone = weights.pop("model.transformer.blocks.2.q_proj.weight")
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor for model\.transformer\.blocks\.2\.q_proj\.weight"):
        read_llada(path)
    save_file({**weights, "model.transformer.blocks.2.att_proj.weight": gone}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="att_proj"):
        read_llada(path)


def test_a_causal_llama_is_not_written_as_llada() -> None:
    with pytest.raises(UnsupportedModelError, match="is_causal=False"):
        to_llada_fields(LlamaConfig(), 5)
    with pytest.raises(CheckpointError, match="q_norm"):
        to_llada_names(["model.layers.0.self_attn.q_norm.weight"])
