"""Loading of models that look both ways: LLaDA and Dream folders, float32 rotation, and who refuses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import twinrun as tr
from tests.support.diffusion_folders import MASK, dream_folder, llada_folder, sharded
from tests.support.plain_llada import plain_heads, plain_llada_logits, plain_norm
from twinrun.errors import (
    CheckpointError,
    ConfigError,
    MissingBackendError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from twinrun.models.load import load
from twinrun.models.rotary import FullRotary

IDS = torch.arange(120).mul(7).remainder(MASK).tolist()
HALF = torch.bfloat16


def logits(model: tr.Model) -> Tensor:
    with torch.inference_mode():
        return model.model(input_ids=torch.tensor([IDS])).logits[0].double()


def parts_of(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(path / "model.safetensors"), json.loads((path / "config.json").read_text())


@pytest.mark.parametrize(("tied", "kv_heads"), [(False, 4), (True, 4), (False, 2), (True, 1)])
def test_load_opens_a_llada_folder(tmp_path: Path, tied: bool, kv_heads: int) -> None:
    path = llada_folder(tmp_path / "m", tied=tied, kv_heads=kv_heads)
    wanted = plain_llada_logits(*parts_of(path), IDS)
    model = tr.load(path)
    assert type(model.model) is LlamaForCausalLM
    assert (model.is_causal, model.mask_id, model.shifts_logits, model.eos_ids) == (False, MASK, False, {1})
    assert (model.dtype, model.tokenizer, model.max_context) == (torch.float32, None, 256)
    assert float((logits(model) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_shards_precision_and_eager_attention(tmp_path: Path) -> None:
    whole = tr.load(llada_folder(tmp_path / "m"))
    split = tr.load(sharded(llada_folder(tmp_path / "s")))
    assert torch.equal(logits(whole), logits(split))
    half = tr.load(tmp_path / "s", dtype="bfloat16", device="cpu")
    assert half.choices["dtype"].startswith("bfloat16: as requested")
    assert half.dtype == HALF
    eager = tr.load(tmp_path / "m", attention="eager")
    assert float((logits(eager) - logits(whole)).abs().max()) < 1e-4
    with pytest.raises(ConfigError, match="choose sdpa or eager"):
        tr.load(tmp_path / "m", attention="flex_attention")
    (tmp_path / "s" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks model-00002"):
        tr.load(tmp_path / "s")


def test_half_precision_rotates_in_float32(tmp_path: Path) -> None:
    """Keys as a layer hands them to its cache, called alone; and whole logits, which the plain rotation misses."""
    path = llada_folder(tmp_path / "m", kv_heads=2)
    weights, fields = parts_of(path)
    model = tr.load(path, dtype="bfloat16")
    body: Any = model.layout.body
    seen: list[Tensor] = []

    class Cache:
        def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            seen.extend((keys, values))
            return keys, values

    places = torch.arange(len(IDS))
    with torch.inference_mode():
        hidden = body.embed_tokens(torch.tensor([IDS]))
        turned = body.rotary_emb(hidden, position_ids=places[None])
        body.layers[0](hidden, position_embeddings=turned, past_key_values=Cache(), use_cache=True)
    own = {
        k.removeprefix("model.transformer.blocks.0."): w.to(HALF)
        for k, w in weights.items()
        if "blocks.0." in k
    }
    h = plain_norm(weights["model.transformer.wte.weight"].to(HALF)[IDS], own["attn_norm.weight"], fields)
    for wrong, is_same in (("", True), ("rotary", False)):
        _, keys, values = plain_heads(own, fields, h, places, wrong)
        assert torch.equal(seen[0][0].to(HALF), keys[::2]) is is_same
        assert torch.equal(seen[1][0], values[::2])
    right, wrong = (
        (plain_llada_logits(weights, fields, IDS, kind, HALF).double() - logits(model)).pow(2).mean().sqrt()
        for kind in ("", "rotary")
    )
    assert right < 0.75 * wrong


def test_full_rotation_is_the_files_to_choose(tmp_path: Path) -> None:
    path = llada_folder(tmp_path / "m")
    exact = tr.load(path, dtype="bfloat16")
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(fields | {"rope_full_precision": False}))
    plain = tr.load(path, dtype="bfloat16")
    assert not torch.equal(logits(plain), logits(exact))
    assert torch.equal(
        logits(tr.load(path)), logits(tr.load(llada_folder(tmp_path / "n")))
    )  # float32 has no choice
    exact.model.save_pretrained(tmp_path / "saved")
    again = tr.load(tmp_path / "saved")
    assert (again.is_causal, again.mask_id, type(again.layout.body.rotary_emb)) == (False, MASK, FullRotary)
    assert torch.equal(logits(again), logits(exact))


def test_layers_called_alone_look_both_ways(tmp_path: Path) -> None:
    model = tr.load(llada_folder(tmp_path / "m"))
    body: Any = model.layout.body
    with torch.inference_mode():
        hidden = body.embed_tokens(torch.tensor([IDS]))
        turned = body.rotary_emb(hidden, position_ids=torch.arange(len(IDS))[None])
        for layer in body.layers:
            hidden = layer(hidden, position_embeddings=turned)
        assert torch.equal(model.model.lm_head(body.norm(hidden))[0].double(), logits(model))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_masked_out_with_either_attention(tmp_path: Path, attention: str) -> None:
    model = tr.load(llada_folder(tmp_path / "m"), attention=attention)
    model.model.double()
    runner = tr.Diffusion(model, block_length=8, cache="dual")
    rows = [IDS[:9], IDS[40:43]]
    together = runner.generate(rows, 16, early_stop=False).canvases
    assert together == [runner.generate(row, 16, early_stop=False).canvases[0] for row in rows]
    padded = [model.pad_id] * 6 + rows[1]
    assert together[1] != runner.generate(padded, 16, early_stop=False).canvases[0], (
        "the control: pads that count"
    )


@pytest.mark.filterwarnings("ignore:The tokenizer class you load:UserWarning")
def test_dream_is_a_qwen2_whose_logits_are_those_of_the_next_token(tmp_path: Path) -> None:
    path = dream_folder(tmp_path / "m")
    model = tr.load(path)
    fields = json.loads((path / "config.json").read_text())
    assert (model.is_causal, model.mask_id, model.shifts_logits) == (False, fields["mask_token_id"], True)
    assert model.decode(model.encode("Ana has 3 coins.")) == "Ana has 3 coins."
    last = torch.tensor([[*IDS[:-1], IDS[0]]])
    with torch.inference_mode():
        first_row = model.model(input_ids=last).logits[0, 0].double()
    assert not torch.allclose(first_row, logits(model)[0])  # the first token sees the last
    model.model.save_pretrained(tmp_path / "saved")
    again = tr.load(tmp_path / "saved")
    assert (again.is_causal, again.mask_id, again.shifts_logits) == (False, model.mask_id, True)
    assert torch.equal(logits(again), logits(model))
    assert tr.load(dream_folder(tmp_path / "bare", tokenizer=False)).tokenizer is None


@pytest.mark.parametrize(
    ("key", "value"), [("rope_scaling", {"rope_type": "yarn"}), ("use_sliding_window", True)]
)
def test_a_dream_variant_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = dream_folder(tmp_path / "m", tokenizer=False)
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(fields | {key: value}))
    with pytest.raises(UnsupportedModelError, match=f"m has {key}=") as refusal:
        tr.load(path)
    assert "\n" not in str(refusal.value)
    del fields["mask_token_id"]
    (path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="lacks 'mask_token_id'"):
        tr.load(path)


REFUSING: dict[str, Callable[[tr.Model], Any]] = {
    "KVCache": tr.KVCache,
    "captured": lambda m: tr.KVCache(m, cache="captured"),
    "SinglePass": tr.SinglePass,
    "Recompute": tr.Recompute,
    "score": lambda m: tr.score(m, [IDS]),
    "contrast": lambda m: tr.contrast(m, m, [IDS]),
    "plan_memory": lambda m: tr.plan_memory(m, context=64),
}


@pytest.mark.parametrize("who", REFUSING)
def test_a_causal_runner_refuses_it_in_one_line(tmp_path: Path, who: str) -> None:
    for model in (tr.load(llada_folder(tmp_path / "m")), tr.load("builtin:diffusion")):
        with pytest.raises(
            UnsupportedModelError, match=r"decode it with tr\.Diffusion\(m\) or `twinrun"
        ) as refusal:
            REFUSING[who](model)
        assert "\n" not in str(refusal.value)


def test_a_folder_of_transformers_may_say_it_too(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        is_causal=False, mask_token_id=7, pad_token_id=0,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    module.save_pretrained(tmp_path / "m")
    found = tr.load(tmp_path / "m")
    assert (found.is_causal, found.mask_id, found.shifts_logits) == (False, 7, False)
    held = tr.load(module)
    assert (held.is_causal, held.mask_id) == (False, 7)
    assert torch.equal(logits(found), logits(held))
    causal = tr.load("builtin:expert")
    assert (causal.is_causal, causal.mask_id, causal.shifts_logits) == (True, None, False)


def test_the_mask_id_is_nobodys_guess(tmp_path: Path) -> None:
    path = llada_folder(tmp_path / "m")
    model = tr.load(path)
    model.config.mask_token_id = 41  # outside the vocabulary
    assert model.mask_id is None
    tokenizer = tr.load("builtin:diffusion").tokenizer
    small = tr.Model(model.model, tokenizer)
    tokenizer.mask_token = "<|pad|>"
    assert small.mask_id == tokenizer.mask_token_id


def test_memory_is_predicted_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinrun.models.memory.free_bytes", lambda _device: 1000)
    with pytest.raises(OutOfMemoryError, match=r"needs .* for its weights alone"):
        load(llada_folder(tmp_path / "m"))


def test_pickles_and_remote_code_are_never_run(tmp_path: Path) -> None:
    path = llada_folder(tmp_path / "m")
    fields = json.loads((path / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"}}
    (path / "config.json").write_text(json.dumps(fields | own))
    (path / "modeling_llada.py").write_text("raise SystemExit('the code of the checkpoint was run')")
    assert type(tr.load(path, trust_remote_code=True).model) is LlamaForCausalLM
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        tr.load(path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = llada_folder(tmp_path / "m")
    weights, _ = parts_of(path)
    name = "model.transformer.blocks.1.up_proj.weight"
    save_file({**weights, name: weights[name][:-1].contiguous()}, path / "model.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        tr.load(path)
    assert "\n" not in str(refusal.value)


def test_a_hub_name_of_llada_is_asked_of_the_hub() -> None:
    with pytest.raises(MissingBackendError, match="hub cannot be reached"):
        tr.load("GSAI-ML/LLaDA-8B-Instruct")
