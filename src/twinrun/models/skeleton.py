"""A causal LM with shapes and no numbers, built on torch's meta device from a config alone; no weight is read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedConfig,
    QuantizedCache,
    StaticCache,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

import twinrun.models.gpt  # noqa: F401  registers our own architecture with the Auto classes
from twinrun.errors import CheckpointError, ConfigError, TwinrunError, UnsupportedModelError
from twinrun.models.bidirectional import is_translated
from twinrun.models.hub import check_reachable
from twinrun.models.layout import Layout
from twinrun.models.load import explain, local_folder
from twinrun.models.memory import Stored
from twinrun.models.model import Model
from twinrun.models.tail import Tail, text_config
from twinrun.models.translate import translated
from twinrun.numerics.precision import parse_dtype

_DECODERS = ("CausalLM", "LMHead", "ConditionalGeneration")


def read_config(
    source: Any, *, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[Any, str]:
    """Return a transformers config and its name from whatever names one.

    Args:
        source: "builtin:NAME", a checkpoint folder (config.json is enough), a config file, a hub name, a
            transformers config, a model in memory, or what `twinrun.load` returns.
        trust_remote_code: run code that comes with a config.
        revision: branch, tag or commit of a hub model.

    Raises:
        ConfigError: unknown name, with near ones.
        CheckpointError: a folder without config.json, or a file that is no config.
        MissingBackendError: a hub name, and the hub cannot be reached.
    """
    if isinstance(source, Model):
        return source.core.config, source.name
    if isinstance(source, nn.Module):
        return getattr(source, "config", None), type(source).__name__
    if hasattr(source, "to_diff_dict"):
        return source, str(source.name_or_path or type(source).__name__)
    name = str(source)
    is_file = Path(name).is_file()
    place = name if is_file else str(local_folder(name) or "")
    if place:
        _check_config_file(Path(place) if is_file else Path(place) / "config.json")
    else:
        check_reachable(name, revision)
    options = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
    try:
        fields, _ = PreTrainedConfig.get_config_dict(place or name, revision=revision or "main")
        if is_translated(fields):
            return translated(fields, name), name
        return AutoConfig.from_pretrained(place or name, **options), name
    except TwinrunError:
        raise
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise explain(error, name, local=bool(place)) from error


def _check_config_file(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} has no config.json; give a folder or file that holds a model's config"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); give a config.json") from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise CheckpointError(
            f"{file} names no model_type, so it is no transformers config; give a config.json"
        )


def build(
    source: Any, *, dtype: Any = "auto", attention: str | None = None, trust_remote_code: bool = False
) -> Model:
    """Return a `Model` whose weights have shapes and precisions and no values.

    Args:
        source: as in `read_config`.
        dtype: "auto" is the precision the config names (float32 if none), else a precision.
        attention: transformers' implementation ("sdpa", "eager"); None is the model's default.
        trust_remote_code: run code that comes with a config.

    Raises:
        ConfigError: an attention that the family lacks.
        UnsupportedModelError: an encoder, or no causal LM.

    Cost: the time to make the modules, under a second for any depth; no memory.

    Example:
        >>> sum(p.numel() for p in build("builtin:expert").model.parameters())
        2632512
    """
    config, name = read_config(source, trust_remote_code=trust_remote_code)
    _refuse_encoder(config, name)
    text = text_config(config)
    precision = (getattr(text, "dtype", None) or torch.float32) if dtype == "auto" else parse_dtype(dtype)
    extra: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    extra |= {"trust_remote_code": True} if trust_remote_code else {}
    make: Any = AutoModelForCausalLM.from_config
    with quiet(), torch.device("meta"):
        try:
            module = make(copy.deepcopy(config), dtype=precision, **extra).eval()
        except (ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
            raise _unbuilt(error, name, attention) from error
    model = Model(module, name=name)
    model.__dict__["layout"] = _layout_of(module, text)
    return model


def _unbuilt(error: Exception, name: str, attention: str | None) -> Exception:
    text = " ".join(str(error).split())
    if "attention implementation" in text or "attn_implementation" in text:
        other = "eager" if attention != "eager" else "sdpa"
        return ConfigError(f"{name} has no attention {attention!r}; use attention={other!r} or leave it out")
    found = explain(error, name, local=True)
    if isinstance(found, CheckpointError):
        return UnsupportedModelError(f"no model can be built from the config of {name}: {text[:160]}")
    return found


def _refuse_encoder(config: Any, name: str) -> None:
    """An encoder has no cache to plan and no next token; transformers would build some of them as decoders."""
    if config is None:
        raise UnsupportedModelError(
            f"{name} has no transformers config; give one, or a model of transformers"
        )
    kinds = list(getattr(config, "architectures", None) or [])
    foreign = kinds and not any(word in kind for kind in kinds for word in _DECODERS)
    masked = getattr(config, "model_type", "") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    encoder = masked and getattr(config, "is_decoder", None) is False and not kinds
    if getattr(config, "is_encoder_decoder", False) or foreign or encoder:
        kind = kinds[0] if kinds else f"a {config.model_type} encoder"
        raise UnsupportedModelError(
            f"{name} is {kind}, no decoder; twinrun plans causal LMs (AutoModelForCausalLM)"
        )


def _layout_of(module: Any, text: Any) -> Layout:
    """Body and head as transformers names them: without numbers nothing can be watched. The tail is the config's."""
    head = module.get_output_embeddings()
    body = module.get_decoder()
    body = getattr(module, module.base_model_prefix, body) if body is module else body
    tail = Tail(
        getattr(text, "final_logit_softcapping", None),
        getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None),
        getattr(text, "logits_scaling", None),
    )
    return Layout(body, module.base_model_prefix, (), "", None, None, head, "head", tail, (), None)


def stored(model: Model) -> list[Stored]:
    """Sizes of parameters (tied ones once) and buffers of a model; buffers keep their precision."""
    weights = [Stored(p.numel(), p.dtype.itemsize, p.is_floating_point()) for p in model.model.parameters()]
    return weights + [Stored(b.numel(), b.dtype.itemsize, False) for b in model.model.buffers()]


def new_cache(model: Model, kind: str, length: int) -> Any:
    """An empty cache of transformers: "static" for `length` tokens a row, "quantized" to fp8, or "dynamic"."""
    if kind == "quantized":
        return QuantizedCache("fp8", model.config)
    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=length)
    return DynamicCache(config=model.config)


def tell_length(cache: Any, tokens: int) -> None:
    """Tell the layers of a filled cache how many tokens they hold: a static one reads that from a tensor."""
    for layer in cache.layers:
        held = getattr(layer, "cumulative_length", None)
        if isinstance(held, Tensor) and held.ndim == 0:
            layer.cumulative_length = torch.tensor(tokens, dtype=held.dtype, device="cpu")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' advice inside the block: it speaks of inputs, and there are none."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # unannotated there
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)
