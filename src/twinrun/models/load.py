"""Load a transformers causal LM, a LLaDA or a Dream: a hub name, a folder, a built-in, or objects in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinrun.errors import (
    CheckpointError,
    ConfigError,
    MissingBackendError,
    TwinrunError,
    UnsupportedModelError,
    near_names,
)
from twinrun.models.bidirectional import is_translated
from twinrun.models.builtin_names import builtin_folder, builtin_names
from twinrun.models.checkpoint import check_finite, check_fits, check_folder
from twinrun.models.hub import check_reachable
from twinrun.models.memory import refuse_oversize, weight_bytes
from twinrun.models.model import Model
from twinrun.models.spread import Spread, refuse_spread_in_memory
from twinrun.models.tail import text_config
from twinrun.numerics.precision import dtype_name, parse_dtype


def load(
    source: str | Path | nn.Module | Model,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    tp_plan: str | dict[str, str] | None = None,
) -> Model:
    """Return a `Model`, ready for any runner; a masked-diffusion model (`is_causal` is False) for `twinrun.Diffusion`.

    Args:
        source: "builtin:NAME", a checkpoint folder, a hub name, or a causal LM that is already in memory.
        tokenizer: a transformers tokenizer for a model in memory; None there means that prompts are token
            ids. For the other sources the checkpoint's own is used if this is None.
        dtype: "auto" keeps the checkpoint's own precision; otherwise "float32", "bfloat16" or "float16".
        device: "auto" takes the first CUDA device if there is one, else the processor.
        attention: transformers' attention implementation ("sdpa", "eager", ...); None is the model's default.
        trust_remote_code: run code that comes with a checkpoint. Off: a checkpoint that needs it is refused.
        revision: branch, tag or commit of a hub model.
        device_map: transformers' placement of layers on several devices ("auto", "balanced", or a mapping).
        tp_plan: transformers' tensor-parallel plan, "auto" for the model's own; every process of `torchrun` then
            holds a part of each layer, and all of them must make the same calls (`docs/many-gpus.md`).

    Raises:
        ConfigError: unknown name (with near ones), or an option that does not apply to a model in memory.
        CheckpointError: a folder that is no checkpoint, pickled weights, corrupt or missing files.
        NonFiniteError: NaN or Inf in the weights; names the tensor.
        OutOfMemoryError: the weights will not fit; said before they are read.
        MissingBackendError: a hub name, and the hub cannot be reached.
        UnsupportedModelError: no causal LM that transformers knows, and no LLaDA or Dream that its classes can run.

    Example:
        >>> load("builtin:expert").choices["dtype"]
        'bfloat16: the precision that the checkpoint is stored in'
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, nn.Module):
        refuse_spread_in_memory(device_map, tp_plan)
        return _in_memory(source, tokenizer, dtype, device)
    spread = Spread.of(device_map, tp_plan, device)
    wanted = None if dtype == "auto" else parse_dtype(dtype)
    place, why_device = _pick_device(device)
    name = str(source)
    folder = local_folder(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if folder is not None:
        files = check_folder(folder)
        if not spread:  # what each device must hold is transformers' choice
            check_fits(files, wanted, place, name)
    else:
        check_reachable(name, revision)
        if not spread:
            _check_config_fits(name, wanted, place, trust_remote_code, revision)
        options["revision"] = revision or "main"
    module, found = _from_pretrained(str(folder or name), name, wanted, attention, options, spread)
    check_finite(module)
    module = module if spread else module.to(place)
    model = Model(module.eval(), tokenizer or found, name=name)
    why_dtype = "as requested" if wanted is not None else "the precision that the checkpoint is stored in"
    model.choices = {
        "dtype": f"{dtype_name(model.dtype)}: {why_dtype}",
        "device": spread.why or f"{place}: {why_device}",
    }
    return model


def _check_config_fits(
    name: str, wanted: torch.dtype | None, place: torch.device, trust_remote_code: bool, revision: str | None
) -> None:
    """Refuse a hub model whose weights will not fit, by its config, before they are fetched."""
    from twinrun.models.skeleton import build, read_config, stored

    try:
        config, _ = read_config(name, trust_remote_code=trust_remote_code, revision=revision)
        dtype = wanted or getattr(text_config(config), "dtype", None) or torch.bfloat16
        model = build(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except TwinrunError:  # whatever is wrong with it, reading the model says it better
        return
    if (
        getattr(config, "quantization_config", None) is None
    ):  # packed weights are smaller than the config says
        refuse_oversize(name, weight_bytes(stored(model)), place)


def _in_memory(
    module: nn.Module, tokenizer: Any, dtype: str | torch.dtype, device: str | torch.device
) -> Model:
    """Wrap a module as it is; moving or casting somebody's object in place is theirs to do."""
    for option, value in (("dtype", dtype), ("device", device)):
        if value != "auto":
            raise ConfigError(
                f"{option}={value!r} does not apply to a model in memory; call model.to(...) yourself first"
            )
    if module.training:
        raise ConfigError(
            f"{type(module).__name__} is in training mode (dropout would differ at every run); "
            "call model.eval() first"
        )
    check_finite(module)
    model = Model(module, tokenizer)
    model.choices = {
        "dtype": f"{dtype_name(model.dtype)}: as in memory",
        "device": f"{model.device}: as in memory",
    }
    return model


def _pick_device(device: str | torch.device) -> tuple[torch.device, str]:
    if str(device) != "auto":
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"unknown device {device!r}; use 'cpu' or 'cuda'") from error
        if place.type == "cuda" and not torch.cuda.is_available():
            raise MissingBackendError(
                f"device {device!r} was requested and this machine has no CUDA device; use 'cpu'"
            )
        return place, "as requested"
    if torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device is present"
    return torch.device("cpu"), "no CUDA device is present"


def local_folder(name: str) -> Path | None:
    """Return the folder of a built-in or local checkpoint; None means a hub name."""
    if name.startswith("builtin:"):
        return builtin_folder(name.removeprefix("builtin:"))
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"{name} is a file; give the folder that holds config.json and the safetensors files"
        )
    if name in builtin_names():
        raise ConfigError(f"no model named {name!r}. Did you mean 'builtin:{name}'?")
    return None


def _from_pretrained(
    path: str, name: str, dtype: Any, attention: str | None, options: dict[str, Any], spread: Spread
) -> tuple[nn.Module, Any]:
    """Read weights and tokenizer with transformers; only safetensors, never a pickle."""
    from transformers import AutoModelForCausalLM, PreTrainedConfig

    import twinrun.models.gpt  # noqa: F401  registers our own architecture with the Auto classes
    from twinrun.models.translate import looks_both_ways, read_tokenizer, read_translated

    extra: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    revision = {key: value for key, value in options.items() if key != "trust_remote_code"}
    try:
        fields, _ = PreTrainedConfig.get_config_dict(path, **revision)
        spread.check(fields, name)
        if is_translated(fields):
            module = read_translated(path, fields, name, attention, dtype=dtype or "auto", **revision)
        else:
            module = looks_both_ways(
                AutoModelForCausalLM.from_pretrained(
                    path, dtype=dtype or "auto", use_safetensors=True, **extra, **spread.options(), **options
                )
            )
    except TwinrunError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise explain(error, name, local=path != name or Path(path).is_dir()) from error
    # a checkpoint without a tokenizer is usable: prompts are ids
    return module, read_tokenizer(path, fields, **options)


def explain(error: Exception, name: str, *, local: bool) -> Exception:
    """Turn what transformers raised into one line with value, rule and fix."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ConfigError(
            f"{name} brings its own code, which is not run by default; pass "
            "trust_remote_code=True if you trust it"
        )
    if "Unrecognized configuration class" in text or "Unrecognized model" in text:
        return UnsupportedModelError(
            f"{name} is no causal LM that transformers knows; twinrun runs decoders (AutoModelForCausalLM)"
        )
    if local:
        return CheckpointError(f"{name} could not be loaded: {text[:200]}")
    if "safetensors" in text and "does not appear to have" in text:
        return CheckpointError(
            f"{name} has no safetensors weights; twinrun does not unpickle: ask for a converted revision"
        )
    hint = near_names(name, [f"builtin:{n}" for n in builtin_names()])
    if any(w in text.lower() for w in ("connect", "offline", "couldn't reach", "timed out", "resolve")):
        return MissingBackendError(
            f"{name} is neither a built-in nor a folder, and the model hub cannot be reached from here.{hint}"
        )
    return ConfigError(
        f"no model named {name!r}: not a built-in, not a folder, not on the hub.{hint} `twinrun "
        "models` lists the built-ins"
    )


def quiet_transformers() -> None:
    """Let transformers log errors only and draw no bars; for commands, whose output is their own."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # unannotated there
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # unannotated there
