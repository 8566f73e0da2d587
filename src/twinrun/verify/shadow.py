"""Feed the reference's inputs to the candidate's module: is the module wrong, or only what it is handed?"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.numerics.fingerprint import difference, fingerprints
from twinrun.verify.activations import as_rows, flatten
from twinrun.verify.watch import by_name

CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")


def shadow_error(
    reference: Any, candidate: Any, module: str, tokens: list[int], *, raised: bool
) -> Tensor | None:
    """Error of the candidate's module on the reference's own inputs, without a cache; `[tokens]`, relative.

    One plain forward of the reference's model over the whole text gives the inputs and the right outputs.

    Args:
        reference: trusted side; its `module` is called directly.
        candidate: side on trial.
        module: path of the module, the same on both sides.
        tokens: the text.
        raised: compare one precision up.

    Returns:
        None if the module cannot be called on its own.

    Cost: one forward of the reference's model and one of the module.
    """
    theirs = candidate.module.get_submodule(module)
    caught: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def hook(_part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        caught.append((args, kwargs, output))

    with ExitStack() as undo, torch.inference_mode():
        if raised:
            undo.enter_context(reference.raised())
        part = reference.module.get_submodule(module)
        undo.callback(part.register_forward_hook(hook, with_kwargs=True).remove)
        device = next(reference.module.parameters()).device
        reference.module(input_ids=torch.tensor([tokens], device=device), use_cache=False)
    if not caught:
        return None
    args, kwargs, right = caught[0]
    device = next(theirs.parameters(), torch.zeros(())).device
    named = {k: _to(v, device) for k, v in by_name(theirs, args, kwargs).items() if k not in CACHES}
    with ExitStack() as undo, torch.inference_mode():
        if raised:
            undo.enter_context(candidate.raised())
        try:
            got = theirs(**named)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
            return None
    return _error(got, right, len(tokens))


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
    return type(value)(_to(v, device) for v in value) if isinstance(value, (tuple, list)) else value
