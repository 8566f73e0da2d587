"""Plan the memory of a model from its config, before a weight is read."""

from __future__ import annotations

from typing import Any

import torch

from twinrun.errors import ConfigError, MissingBackendError, near_names
from twinrun.models.bidirectional import refuse_bidirectional
from twinrun.models.memory import free_bytes
from twinrun.models.model import Model
from twinrun.models.skeleton import build
from twinrun.numerics.precision import dtype_name
from twinrun.numerics.units import parse_bytes
from twinrun.plan.advice import advise, usable
from twinrun.plan.caches import KINDS
from twinrun.plan.predict import LAST, POLICIES, Predictor, Request
from twinrun.plan.record import CachePlan, LogitsPlan, MemoryPlan

ATTENTIONS = ("sdpa", "eager")
SHOWN_DTYPES = (torch.float32, torch.bfloat16)


def plan_memory(
    source: Any,
    *,
    context: int,
    batch: int = 1,
    new_tokens: int = 0,
    dtype: str | torch.dtype = "auto",
    attention: str | None = None,
    memory: str | int | None = None,
    device: str = "auto",
) -> MemoryPlan:
    """Predict the bytes of weights, cache, activations and logits, and say what fits. No weights are loaded.

    Args:
        source: "builtin:NAME", a folder or file with a config, a hub name (its config is fetched, nothing else), a
            transformers config, or a model in memory.
        context: tokens of the prompt, in each row.
        batch: rows.
        new_tokens: tokens to generate; 0 plans the scoring of a text.
        dtype: precision of the weights; "auto" is what the config names.
        attention: "sdpa" or "eager"; None is the model's default.
        memory: what there is, in bytes or as "24GB"; None is what is free on `device` now.
        device: whose kernels: "cpu", "cuda", or "auto" (CUDA if there is a device).

    Returns:
        A `MemoryPlan`: tensors only. The interpreter and torch itself (0.3 to 0.5 GiB), a CUDA context and what an
        allocator loses between blocks come on top.

    Raises:
        ConfigError: a size below 1, an unreadable `memory`, an unknown name, an attention that the model lacks.
        UnsupportedModelError: an encoder, a layer with a recurrent state, a forward that needs numbers.
        MissingBackendError: the hub cannot be reached, or CUDA's free memory is asked for and there is no device.

    Cost: a second or two, and no memory: the model's own forwards run on the meta device.

    Example:
        >>> plan = plan_memory("builtin:expert", context=512, new_tokens=64, memory="1GiB", device="cpu")
        >>> plan.fits, plan.cache("dynamic").device_bytes
        (True, 1327104)
    """
    request = _checked(batch, context, new_tokens)
    if attention is not None and attention not in ATTENTIONS:
        raise ConfigError(
            f"attention {attention!r} cannot be planned; choose sdpa or eager.{near_names(attention, ATTENTIONS)}"
        )
    place, room, room_from = _room(device, memory)
    model = build(source, dtype=dtype, attention=attention)
    refuse_bidirectional(model.config, model.name)
    predictor = Predictor(model, place)
    logits = tuple(_logits_plan(predictor, name, request, room) for name in POLICIES)
    kinds = [kind for kind in KINDS if usable(kind, predictor, place)]
    caches = tuple(_cache_plan(predictor, kind, request, room) for kind in kinds)
    return MemoryPlan(
        model=model.name,
        family=type(model.core).__name__,
        parameters=sum(p.numel() for p in model.model.parameters()),
        dtype=dtype_name(model.dtype),
        attention=str(model.config._attn_implementation),
        device=place,
        context=context,
        batch=batch,
        new_tokens=new_tokens,
        max_context=model.max_context,
        vocab_size=model.vocab_size,
        memory_bytes=room,
        memory_from=room_from,
        weights_bytes=predictor.weights,
        weights_by_dtype={dtype_name(d): predictor.weights_in(d) for d in SHOWN_DTYPES},
        activations_bytes=_by_attention(source, predictor, request),
        caches=caches,
        logits=logits,
        fits=any(row.fits for row in logits) or any(row.fits for row in caches),
        advice=advise(predictor, request, room, logits, caches),
        notes=_notes(model, request, place),
    )


def _checked(batch: int, context: int, new_tokens: int) -> Request:
    for name, value, least in (("context", context, 1), ("batch", batch, 1), ("new_tokens", new_tokens, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} must be a whole number, at least {least}, got {value!r}")
    return Request(batch, context, new_tokens)


def _room(device: str, memory: str | int | None) -> tuple[str, int, str]:
    """Kernels planned for, bytes there are, and where that number is from."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device {device!r}; plan for 'cpu' or 'cuda'")
    has_cuda = torch.cuda.is_available()
    place = device if device != "auto" else "cuda" if has_cuda else "cpu"
    if memory is not None:
        return place, parse_bytes(memory), "as given"
    if place == "cuda" and not has_cuda:
        raise MissingBackendError(
            "there is no CUDA device here to ask for its free memory; say how much it has: memory='80GB'"
        )
    return place, free_bytes(torch.device(place)), f"free on {place} now"


def _logits_plan(predictor: Predictor, name: str, request: Request, room: int) -> LogitsPlan:
    total = predictor.total(name, "dynamic", request)
    return LogitsPlan(
        policy=name,
        logits_bytes=predictor.logits(name, request),
        prefill_bytes=predictor.prefill(name, "dynamic", request),
        decode_bytes=predictor.decode("dynamic", request),
        total_bytes=total,
        fits=total <= room,
        what=POLICIES[name],
    )


def _cache_plan(predictor: Predictor, kind: str, request: Request, room: int) -> CachePlan:
    held, total = predictor.cache(kind, request), predictor.total(LAST, kind, request)
    return CachePlan(
        kind=kind,
        device_bytes=held.device,
        host_bytes=held.host,
        total_bytes=total,
        fits=total <= room,
        what=KINDS[kind],
    )


def _by_attention(source: Any, predictor: Predictor, request: Request) -> dict[str, int | None]:
    """Activations of the prompt under each attention; None where the family lacks it."""
    found: dict[str, int | None] = {}
    for name in ATTENTIONS:
        if name == predictor.model.config._attn_implementation:
            found[name] = predictor.activations(request)
            continue
        try:
            other = build(source, dtype=predictor.model.dtype, attention=name)
            found[name] = Predictor(other, predictor.device).activations(request)
        except ConfigError:
            found[name] = None
    return found


def _notes(model: Model, request: Request, device: str) -> tuple[str, ...]:
    """What a reader of the numbers must know."""
    notes = []
    limit, total = model.max_context, request.context + request.new_tokens
    if limit is not None and total > limit:
        notes.append(
            f"{total:,} tokens are more than the {limit:,} the model was built for: runners refuse them; "
            "the plan holds for a config with a larger limit"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        notes.append("the checkpoint is packed; its weights are counted as if they were unpacked")
    if device == "cpu":
        notes.append(
            f"the tiles of fused attention are counted for torch.get_num_threads() = {torch.get_num_threads()}"
        )
    return tuple(notes)
