"""LoRA adapters: put into a model, written, opened again over the model they were trained on. peft does the work."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from twinrun.contrast.identity import check_identity
from twinrun.contrast.train_settings import ALL_LINEAR, LoraSettings
from twinrun.errors import CheckpointError, ConfigError, MissingBackendError
from twinrun.models.load import load
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name

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
    holders = [getattr(model.core, name, None) for name in ("config", "generation_config")]
    kept = [copy.deepcopy(vars(holder)) for holder in holders if holder is not None]
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
        # the Trainer writes the tokenizer's special ids and its own wishes into the configs
        for holder, values in zip([h for h in holders if h is not None], kept, strict=True):
            vars(holder).clear()
            vars(holder).update(values)
        for name, parameter in model.core.named_parameters():
            parameter.requires_grad_(grads[name])
            parameter.grad = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush: peft asks a model for a name that transformers has given up; neither is our user's business."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings(
            "ignore", "fan_in_fan_out is set to False", UserWarning
        )  # peft then sets it itself
        yield


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


def load_adapted(
    folder: str | Path, *, base: str | None = None, dtype: str = "auto", device: str = "auto"
) -> Model:
    """Load the base of an adapter in any precision and put the adapter into it.

    Args:
        folder: of `twinrun contrast train`, or any LoRA folder of peft.
        base: what `twinrun.load` takes; None is what the folder names.
        dtype: of the base; the adapter's own weights are float32 where this is a half type.
        device: as in `twinrun.load`.

    Raises:
        CheckpointError, ConfigError, MissingBackendError: see `open_adapted`.

    Cost: reads the base twice where `dtype` is not the one that it was trained in.
    """
    refuse_without_peft()
    name = base or base_name(folder)
    model = load(name, dtype=dtype, device=device)
    told = _told(check_adapter(folder))
    if told and told["dtype"] != dtype_name(model.dtype):
        check_identity(load(name, dtype=told["dtype"], device="cpu"), told, f"the adapter in {folder}")
        return open_adapted(model, folder, check=False)
    return open_adapted(model, folder)


def open_adapted(base: Model, folder: str | Path, *, check: bool = True) -> Model:
    """Put a trained adapter into `base` and return the adapted model; `base` itself is changed.

    Args:
        base: the model that the adapter was trained on.
        folder: of the adapter.
        check: refuse another base by its digest, which the folder of `twinrun contrast train` keeps.

    Raises:
        CheckpointError: no adapter there, or one whose weights do not fit.
        ConfigError: an adapter of another base.
        MissingBackendError: peft is not installed.
    """
    refuse_without_peft()
    place = check_adapter(folder)
    if check:
        check_identity(base, _told(place), f"the adapter in {place}")
    from peft import PeftModel

    try:
        with _quiet():
            wrapped: Any = PeftModel.from_pretrained(base.core, str(place))
        _check_all_loaded(wrapped, place)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter in {place} does not fit {base.name}: {' '.join(str(error).split())[:160]}"
        ) from error
    module: nn.Module = wrapped.get_base_model()
    return Model(module.eval(), base.tokenizer, name=f"{base.name} + {place}")


def _told(place: Path) -> Any:
    """Digest and precision of the base, as the folder keeps them; None in a folder that peft alone wrote."""
    request = place / REQUEST
    return json.loads(request.read_text("utf-8")).get("base") if request.is_file() else None


def _check_all_loaded(wrapped: Any, place: Path) -> None:
    """Every tensor of the file must be in the model; peft passes over those of modules that are not there."""
    from peft import get_peft_model_state_dict

    held = get_peft_model_state_dict(wrapped)
    with safe_open(place / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  no mapping
            if name not in held or not torch.equal(
                held[name].cpu(), file.get_tensor(name).to(held[name].dtype)
            ):
                raise ValueError(f"{name} is not in the model")
