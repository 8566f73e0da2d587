"""Where an architecture keeps its parts: body, decoder layers, final norm, head, routers, and what follows the head.

This is the only file that knows such things. Nothing is looked up by architecture name: one probe forward
of a few tokens shows which module's output reaches the head and what happens to the head's output, so a new
family works the day it appears. A model whose logits cannot be explained this way is not streamed
(`Layout.why_not` says why) and is served through its own forward.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.errors import UnsupportedModelError
from twinrun.models.tail import Tail, find_tail, text_config

PROBE_TOKENS = 6
_ROUTER = re.compile(r"(router|gate|gating)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of one causal LM. Names are paths for `module.get_submodule`."""

    body: nn.Module
    body_name: str
    layers: tuple[nn.Module, ...]
    layers_name: str
    norm: nn.Module | None
    norm_name: str | None
    head: nn.Module | None
    head_name: str | None
    tail: Tail | None
    routers: tuple[str, ...]
    why_not: str | None
    """Why scores of this model cannot be streamed from hidden states; None when they can."""

    @property
    def streams(self) -> bool:
        """Whether hidden states times head give this model's logits."""
        return self.why_not is None


def find_layout(module: nn.Module) -> Layout:
    """Find the parts of a causal LM by watching one forward of six tokens.

    Args:
        module: a transformers causal LM (or a module with the same calling convention), weights in place.

    Raises:
        UnsupportedModelError: the module has no decoder layers, or its forward returns no logits.

    Cost: one forward of six tokens; hooks are removed before it returns.
    """
    head = _head_of(module)
    seen: dict[str, Tensor] = {}
    order: list[str] = []
    with ExitStack() as undo:
        for name, part in module.named_modules():
            undo.callback(part.register_forward_hook(_recorder(name, seen, order)).remove)
        into_head = undo.enter_context(_inputs_of(head)) if head is not None else []
        logits = probe_logits(module)
    layers_name, layers = _decoder_layers(module, order)
    routers = tuple(
        n for n in order if _ROUTER.search(type(module.get_submodule(n)).__name__) and n + "#ids" in seen
    )
    head_name = next((n for n, part in module.named_modules() if part is head), None)
    body_name = _outermost_with_output(module, seen, into_head[0] if into_head else None, head_name)
    if body_name is None or head is None or head_name is None:
        why = "it has no output embeddings" if head is None else "no module's output is what enters its head"
        body = layers_name.rpartition(".")[0]
        return Layout(
            module.get_submodule(body),
            body,
            layers,
            layers_name,
            None,
            None,
            head,
            head_name,
            None,
            routers,
            why,
        )
    norm_name = _final_norm(module, seen, into_head[0], body_name)
    tail = find_tail(getattr(module, "config", None), seen[head_name], logits)
    why_not = None if tail else "what follows its head is no known transform (soft cap, scale, division)"
    norm = module.get_submodule(norm_name) if norm_name else None
    body_module = module.get_submodule(body_name)
    return Layout(
        body_module, body_name, layers, layers_name, norm, norm_name, head, head_name, tail, routers, why_not
    )


def probe_logits(module: nn.Module) -> Tensor:
    """Logits `[1, 6, vocab]` of the module's own forward on six fixed token ids."""
    text = text_config(getattr(module, "config", None))
    vocab = int(getattr(text, "vocab_size", None) or _rows_of_embedding(module))
    device = next(module.parameters()).device
    ids = (torch.arange(PROBE_TOKENS, device=device) * 7 + 3).remainder(vocab)[None]
    with torch.inference_mode():
        out = module(input_ids=ids)
    logits = getattr(out, "logits", out[0] if isinstance(out, tuple) else out)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise UnsupportedModelError(
            f"{type(module).__name__} returned no [batch, tokens, vocab] logits; load a causal LM "
            "(AutoModelForCausalLM)"
        )
    return logits


def _rows_of_embedding(module: nn.Module) -> int:
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            return part.num_embeddings
    raise UnsupportedModelError(
        f"{type(module).__name__} has no token embedding; load a causal LM (AutoModelForCausalLM)"
    )


def _head_of(module: nn.Module) -> nn.Module | None:
    get = getattr(module, "get_output_embeddings", None)
    head = get() if callable(get) else getattr(module, "lm_head", None)
    return head if isinstance(head, nn.Module) else None


def _recorder(name: str, seen: dict[str, Tensor], order: list[str]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        tensors = [t for t in _flatten(output) if isinstance(t, Tensor)]
        order.append(name)
        if tensors:
            seen[name] = tensors[0]
        if any(not t.is_floating_point() and t.dtype != torch.bool for t in tensors):
            seen[name + "#ids"] = next(t for t in tensors if not t.is_floating_point())

    return hook


def _flatten(output: Any) -> Iterator[Any]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from output.values()
    elif isinstance(output, (tuple, list)):
        yield from output


@contextmanager
def _inputs_of(part: nn.Module) -> Iterator[list[Tensor]]:
    got: list[Tensor] = []
    handle = part.register_forward_pre_hook(lambda _m, args: got.append(args[0]))
    try:
        yield got
    finally:
        handle.remove()


def _same(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.shape == b.shape and torch.equal(a, b)


def _outermost_with_output(
    module: nn.Module, seen: dict[str, Tensor], target: Tensor | None, head: str | None
) -> str | None:
    if target is None:
        return None
    names = (name for name, _ in module.named_modules())
    return next((n for n in names if n != head and _same(seen.get(n), target)), None)


def _final_norm(module: nn.Module, seen: dict[str, Tensor], target: Tensor, body: str) -> str | None:
    inside = [
        n
        for n, part in module.named_modules()
        if n.startswith(body) and "norm" in type(part).__name__.lower()
    ]
    return next((n for n in reversed(inside) if _same(seen.get(n), target)), None)


def _decoder_layers(module: nn.Module, called: list[str]) -> tuple[str, tuple[nn.Module, ...]]:
    """Return the longest ModuleList whose entries were called in the probe (the first of equals)."""
    ran = set(called)
    best: tuple[str, tuple[nn.Module, ...]] = ("", ())
    for name, part in module.named_modules():
        if (
            isinstance(part, nn.ModuleList)
            and len(part) > len(best[1])
            and all(f"{name}.{i}" in ran for i in range(len(part)))
        ):
            best = (name, tuple(part))
    if not best[1]:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no list of decoder layers; twinrun runs transformers decoders"
        )
    return best
