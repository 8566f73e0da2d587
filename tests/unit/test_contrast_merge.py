"""Merging: one checkpoint, the same model as base + adapter; a wrong merge is refused and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import twinrun as tr
from tests.support.tiny import tiny_folder
from twinrun.contrast import merge as merging
from twinrun.contrast.adapt import adapt, base_name, load_adapted, open_adapted
from twinrun.contrast.identity import identity
from twinrun.contrast.merge import merge
from twinrun.contrast.train_settings import ALL_LINEAR, LoraSettings
from twinrun.errors import CheckpointError, ConfigError, VerificationFailed
from twinrun.records.write import write_json


def make_adapter(
    folder: Path, base: Path, targets: tuple[str, ...] = (ALL_LINEAR,), size: float = 0.05
) -> Path:
    """An adapter with weights that change the model."""
    model = tr.load(str(base), dtype="float32")
    folder.mkdir(parents=True)
    write_json(folder / "request.json", {"base": identity(model), "base_name": str(base)})
    with adapt(model, LoraSettings(r=2, targets=targets), seed=0) as module:
        generator = torch.Generator().manual_seed(3)
        for weight in (p for p in module.parameters() if p.requires_grad):
            weight.data = size * torch.randn(weight.shape, generator=generator)
        module.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    return make_adapter(tmp_path_factory.mktemp("made") / "adapter", base)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_checkpoint_is_base_and_adapter(tmp_path, base, adapter, dtype) -> None:
    record = merge(adapter, tmp_path / "merged", dtype=dtype)
    assert record["verdict"]["verdict"] == "equivalent"
    assert record["weights"]["ulp_max"] <= 4
    assert record["weights"]["adapted"] == 14
    merged = tr.load(str(tmp_path / "merged"))
    assert str(merged.dtype) == f"torch.{dtype}"
    assert not any("lora" in name for name, _ in merged.core.named_modules())
    ids = list(range(5, 25))
    adapted = load_adapted(adapter, dtype=dtype)
    before, want, got = (
        m.model(input_ids=torch.tensor([ids])).logits.float()
        for m in (tr.load(str(base), dtype=dtype), adapted, merged)
    )
    room = {"float32": 1e-4, "bfloat16": 0.06}[dtype]
    assert (got - want).abs().max() < room * want.abs().max()
    assert (want - before).abs().max() > 0.1 * want.abs().max()  # the adapter does something
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["base"] == str(base)


def test_a_merge_at_another_scale_is_refused(tmp_path, adapter, monkeypatch) -> None:
    """Planted: 1 % of the adapter's product is lost."""
    from peft.tuners.lora import Linear

    sound = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 0.99 * sound(self, name))
    with pytest.raises(VerificationFailed, match="units in the last place off its sum"):
        merge(adapter, tmp_path / "merged")
    monkeypatch.setattr(merging, "ROOM", float("inf"))  # and by the second proof alone
    with pytest.raises(VerificationFailed, match="the merged model is not"):
        merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_weight_without_an_adapter_must_not_change(tmp_path, base, monkeypatch) -> None:
    few = make_adapter(tmp_path / "few", base, ("q_proj",))
    sound = merging._merge_layers

    def spoils(module: torch.nn.Module) -> Any:
        found = sound(module)
        module.get_submodule("model.norm").weight.data[0] += 1e-6
        return found

    monkeypatch.setattr(merging, "_merge_layers", spoils)
    with pytest.raises(VerificationFailed, match=r"merging changed model\.norm\.weight"):
        merge(few, tmp_path / "merged")


def test_adapters_of_another_base_are_refused(tmp_path, adapter) -> None:
    other = tiny_folder(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="was made of another model than"):
        merge(adapter, tmp_path / "merged", base=str(other))
    deep = tiny_folder(tmp_path / "deep", layers=1)
    (adapter / "request.json").rename(tmp_path / "request.json")  # peft's own folders have none
    try:
        with pytest.raises((CheckpointError, VerificationFailed)):
            merge(adapter, tmp_path / "merged", base=str(deep))
    finally:
        (tmp_path / "request.json").rename(adapter / "request.json")
    assert not (tmp_path / "merged").exists()


def test_folders_that_are_none_are_refused(tmp_path, adapter) -> None:
    with pytest.raises(CheckpointError, match=r"holds no adapter_config\.json"):
        base_name(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists; give another --out"):
        merge(adapter, tmp_path / "there")


def test_an_opened_adapter_is_the_one_that_was_saved(base, adapter, tmp_path) -> None:
    """The control: other weights in the file give another model."""
    ids = torch.tensor([list(range(5, 15))])
    one = open_adapted(tr.load(str(base), dtype="float32"), adapter).model(input_ids=ids).logits
    saved = load_file(adapter / "adapter_model.safetensors")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("adapter_config.json", "request.json"):
        (copy / name).write_bytes((adapter / name).read_bytes())
    save_file({k: 2 * v for k, v in saved.items()}, copy / "adapter_model.safetensors", {"format": "pt"})
    two = open_adapted(tr.load(str(base), dtype="float32"), copy).model(input_ids=ids).logits
    assert (one - two).abs().max() > 1e-3
