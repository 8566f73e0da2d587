"""LoRA adapters: put into a model, written, opened again over the model they were trained on. peft does the work."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinrun.contrast.identity import check_identity
from twinrun.contrast.train_settings import ALL_LINEAR, LoraSettings
from twinrun.errors import CheckpointError, ConfigError, MissingBackendError
from twinrun.models.model import Model

CONFIG, WEIGHTS, REQUEST = "adapter_config.json", "adapter_model.safetensors", "request.json"


def refuse_without_peft() -> None:
    """Say what is missing before any work.

    Raises:
        MissingBackendError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingBackendError("adapters need peft, which is not installed; pip install 'twinrun[train]'")


@contextmanager
def adapt(model: Model, settings: LoraSettings, seed: int) -> Iterator[nn.Module]:
    """Inside the block the model carries a fresh adapter, the only thing in it that learns; yields peft's wrapper.

    Behind the block the model is bit for bit what it was.

    Raises:
        ConfigError: no module of the model has such a name.
    """
    from peft import LoraConfig, get_peft_model

    targets: Any = ALL_LINEAR if settings.targets == (ALL_LINEAR,) else list(settings.targets)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number works there
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    grads = {name: p.requires_grad for name, p in model.core.named_parameters()}
    torch.manual_seed(seed)
    try:
        with _quiet():
            wrapped: Any = get_peft_model(model.core, config)
    except ValueError as error:
        raise ConfigError(
            f"{model.name} has no modules called {', '.join(settings.targets)} ({str(error)[:80]}); name others, or "
            f"{ALL_LINEAR}"
        ) from error
    try:
        yield wrapped
    finally:
        wrapped.unload()
        model.core.eval()
        for name, parameter in model.core.named_parameters():
            parameter.requires_grad_(grads[name])
            parameter.grad = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush: peft asks a model for a name that transformers has given up; neither is our user's business."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def save_adapter(wrapped: Any, folder: Path) -> None:
    """Write peft's files."""
    wrapped.save_pretrained(str(folder), safe_serialization=True)


def check_adapter(folder: str | Path) -> Path:
    """Return the folder if it holds an adapter.

    Raises:
        CheckpointError: files missing.
    """
    place = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (place / name).is_file():
            raise CheckpointError(
                f"{place} holds no {name}; give a folder that `twinrun contrast train` wrote"
            )
    return place


def base_name(folder: str | Path) -> str:
    """Name of the model that an adapter was trained on, as its folder says.

    Raises:
        CheckpointError: no adapter there, or one that does not say.
    """
    place = check_adapter(folder)
    for name, key in ((REQUEST, "base_name"), (CONFIG, "base_model_name_or_path")):
        try:
            found = json.loads((place / name).read_text("utf-8")).get(key)
        except (OSError, ValueError):
            continue
        if found:
            return str(found)
    raise CheckpointError(f"{place} does not say which model it adapts; name it with --base")


def open_adapted(base: Model, folder: str | Path) -> Model:
    """Put a trained adapter into `base` and return the adapted model; `base` itself is changed.

    Raises:
        CheckpointError: no adapter there, or one whose weights do not fit.
        ConfigError: an adapter of another base.
        MissingBackendError: peft is not installed.
    """
    refuse_without_peft()
    place = check_adapter(folder)
    request = place / REQUEST
    if request.is_file():
        told = json.loads(request.read_text("utf-8")).get("base")
        check_identity(base, told, f"the adapter in {place}")
    from peft import PeftModel

    try:
        with _quiet():
            wrapped: Any = PeftModel.from_pretrained(base.core, str(place))
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the adapter in {place} does not fit {base.name}: {' '.join(str(error).split())[:160]}"
        ) from error
    module: nn.Module = wrapped.get_base_model()
    return Model(module.eval(), base.tokenizer, name=f"{base.name} + {place}")
