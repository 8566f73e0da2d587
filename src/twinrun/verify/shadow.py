"""Feed the reference's inputs to the candidate's module: is the module wrong, or only what it is handed?"""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.numerics.fingerprint import difference, fingerprints
from twinrun.verify.activations import as_rows, flatten
from twinrun.verify.watch import by_name

CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")


def shadow_error(
    reference: Any, candidate: Any, module: str, tokens: list[int], past: int, *, raised: bool
) -> Tensor | None:
    """Error of the candidate's module on the reference's own inputs and cache; relative, one entry a new token.

    The reference's model runs the first `past` tokens into a fresh cache and then the others in one forward, as the
    candidate did in the step under suspicion. That forward gives the inputs and the right outputs.

    Args:
        reference: trusted side; its `module` is called directly.
        candidate: side on trial.
        module: path of the module, the same on both sides.
        tokens: the text up to the position under suspicion.
        past: tokens before the candidate's step; 0 for a prompt.
        raised: compare one precision up.

    Returns:
        None if the module cannot be called on its own, or if the reference looks through a `window`: its model's plain
        forward sees more than it does.

    Cost: one or two forwards of the reference's model and one of the module.
    """
    if getattr(reference, "window", None) is not None:
        return None
    with reference.raised() if raised else nullcontext(), torch.inference_mode():
        caught = _caught(reference.module, module, tokens, past)
    if caught is None:
        return None
    named, right = caught
    theirs = candidate.module.get_submodule(module)
    device = next(theirs.parameters(), torch.zeros(())).device
    named = {k: _to(v, device) for k, v in named.items()}
    with candidate.raised() if raised else nullcontext(), torch.inference_mode():
        try:
            got = theirs(**named)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
            return None
    return _error(got, right, len(tokens) - past)


def _caught(core: Any, module: str, tokens: list[int], past: int) -> tuple[dict[str, Any], Any] | None:
    """Arguments of the module by name, with the cache as it was before the call, and what it returned."""
    part = core.get_submodule(module)
    device = next(core.parameters()).device
    ids = torch.tensor([tokens], device=device)
    found: list[Any] = []
    before: list[dict[str, Any]] = []

    def enter(_part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = by_name(part, args, kwargs)
        before.append({k: copy.deepcopy(v) if k in CACHE_NAMES and past else v for k, v in named.items()})

    try:
        cache = core(input_ids=ids[:, :past], use_cache=True).past_key_values if past else None
        with ExitStack() as undo:
            undo.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
            undo.callback(part.register_forward_hook(lambda _p, _a, out: found.append(out)).remove)
            core(input_ids=ids[:, past:], past_key_values=cache, use_cache=past > 0)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None
    if not found:
        return None
    named = {k: v for k, v in before[0].items() if past or k not in CACHE_NAMES}
    return named, found[0]


def _error(got: Any, right: Any, width: int) -> Tensor | None:
    worst: Tensor | None = None
    for ours, truth in zip(flatten(got), flatten(right), strict=False):
        a, b = as_rows(ours, 1, width), as_rows(truth, 1, width)
        if a is None or b is None or a.shape != b.shape:
            continue
        error = difference(fingerprints(a[0]).cpu(), fingerprints(b[0]).cpu())
        worst = error if worst is None else torch.maximum(worst, error)
    return worst


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(_to(v, device) for v in value) if type(value) in (tuple, list) else value
