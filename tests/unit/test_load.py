"""Loading: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import twinrun as tr
from tests.support.tiny import tiny_folder
from twinrun.errors import (
    CheckpointError,
    ConfigError,
    MissingBackendError,
    NonFiniteError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from twinrun.models import memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_folder(path)
    return path


@pytest.fixture
def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_folder_loads_with_reasons(folder: Path) -> None:
    model = tr.load(folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.choices["dtype"] == "bfloat16: as requested"
    assert not model.model.training
    assert tr.load(folder).choices["dtype"].endswith("the precision that the checkpoint is stored in")
    assert model.encode("hello")


def test_objects_in_memory_are_taken_as_they_are(folder: Path) -> None:
    inner = tr.load(folder)
    again = tr.load(inner.model, inner.tokenizer)
    assert again.model is inner.model
    assert tr.load(again) is again
    with pytest.raises(ConfigError, match="does not apply to a model in memory"):
        tr.load(inner.model, dtype="float16")
    with pytest.raises(ConfigError, match=r"call model.eval\(\)"):
        tr.load(tr.load(folder).model.train())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin:expret", "Did you mean 'builtin:expert'"),
        ("expert", "Did you mean 'builtin:expert'"),
        ("builtin:", "`twinrun models` lists them"),
    ],
)
def test_unknown_names_come_with_near_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tr.load(name)


def test_a_hub_name_without_a_hub_is_something_missing_here() -> None:
    with pytest.raises(MissingBackendError, match="neither a built-in nor a folder"):
        tr.load("nobody/no-such-model-zzz")
    with pytest.raises(ConfigError, match=r"no model named 'expertt'.* Did you mean 'builtin:expert'"):
        tr.load("expertt")


def test_folders_that_are_no_checkpoint(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        tr.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        tr.load(tmp_path)
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        tr.load(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        tr.load(folder / "config.json")


def test_a_pickle_is_never_opened(copy_of: Path) -> None:
    """The pickle would write a file if it were loaded."""
    (copy_of / "model.safetensors").unlink()
    (copy_of / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointError, match="can run code when it is read"):
        tr.load(copy_of)
    assert not Path("pwned").exists()


def test_a_corrupt_or_cut_file_is_named(copy_of: Path) -> None:
    file = copy_of / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"\xff" * 64, b""):
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt or cut short"):
            tr.load(copy_of)


def test_missing_shards_are_named(copy_of: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (copy_of / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks model-00001-of-00002"):
        tr.load(copy_of)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_weights_are_named(folder: Path, bad: float) -> None:
    model = tr.load(folder).model
    weight = dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"]
    weight.data[2, 3] = bad
    with pytest.raises(
        NonFiniteError, match=r"layers\.1\.mlp\.up_proj\.weight .* 1 NaN or Inf values, the first at \(2, 3\)"
    ):
        tr.load(model)


def test_too_little_memory_is_said_before_anything_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 1000)
    with pytest.raises(OutOfMemoryError, match=r"needs .* KiB for its weights alone and 1000 B are free"):
        tr.load(folder)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32
    )
    ViTModel(small).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no causal LM"):
        tr.load(tmp_path)


def test_devices() -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        tr.load("builtin:amateur", device="gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(MissingBackendError, match="no CUDA device"):
            tr.load("builtin:amateur", device="cuda")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "has no tokens"),
        ([], "has no tokens"),
        ([5, 99_999], "token id 99999 is outside the vocabulary"),
        ([-1], "token id -1 is outside"),
        ([1] * 5000, "exceeds the context"),
    ],
)
def test_bad_prompts(folder: Path, prompt: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tr.load(folder).encode(prompt)


def test_a_text_needs_a_tokenizer(folder: Path) -> None:
    with pytest.raises(ConfigError, match="without a tokenizer"):
        tr.load(tr.load(folder).model).encode("hello")
