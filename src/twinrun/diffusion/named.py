"""Diffusion runners by the names that the command line uses: `diffusion:dual+skip+block_length=16`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twinrun.diffusion.commit import Commit, Factor, Quota, Threshold
from twinrun.diffusion.diffusion import Diffusion
from twinrun.diffusion.importance import ImportanceSkip
from twinrun.diffusion.settings import CACHES
from twinrun.diffusion.skip import TokenSkip, scaled_layer_k
from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model

_SKIP: dict[str, Callable[[str], Any]] = {"layer_k": int, "skip_threshold": float, "outlier": float}
_OWN: dict[str, Callable[[str], Any]] = {"block_length": int, "refresh_every": int}
_COMMIT: dict[str, tuple[Callable[..., Commit], Callable[[str], Any]]] = {
    "quota": (Quota, int),
    "threshold": (Threshold, float),
    "factor": (Factor, float),
}
PARTS = (*CACHES, "skip", "importance", "delay", "commit", *_OWN, *_SKIP)
"""What may follow `diffusion:`, joined by plus signs."""


def is_diffusion_name(name: str) -> bool:
    """Whether a name is that of a diffusion runner."""
    return name.partition(":")[0] == Diffusion.kind


def build_diffusion(name: str, model: Model) -> Diffusion:
    """Build the runner called `name` on a masked-diffusion model.

    Args:
        name: `diffusion`, or `diffusion:` and parts joined by `+`: a cache (none, prefix, dual), `skip` (by cosine) or
            `importance` (by rank), `delay`, and settings: `block_length=16`, `refresh_every=2`, `commit=threshold:0.9`,
            `layer_k=4`, `skip_threshold=0.999`, `outlier=0.7`.
        model: what `twinrun.load` returns.

    Raises:
        ConfigError: an unknown part or a value that is no number; what `Diffusion` refuses.
        UnsupportedModelError: a causal model.

    Example:
        >>> m = load("builtin:diffusion")
        >>> build_diffusion("diffusion:dual+skip+refresh_every=4", m).name
        'diffusion:dual+refresh_every=4+skip'
    """
    settings: dict[str, Any] = {}
    skip: dict[str, Any] = {}
    for part in filter(None, name.partition(":")[2].split("+")):
        key, _, value = part.partition("=")
        if key in CACHES:
            settings["cache"] = key
        elif key == "delay":
            settings["delay"] = True
        elif key in ("skip", "importance"):
            skip.setdefault("kind", key)
        elif key == "commit":
            settings["commit"] = commit_rule(value)
        elif key in _OWN:
            settings[key] = _number(_OWN[key], key, value)
        elif key in _SKIP:
            skip[key.removeprefix("skip_")] = _number(_SKIP[key], key, value)
        else:
            raise ConfigError(
                f"{name!r}: no part {key!r} of a diffusion runner; choose from {', '.join(PARTS)}."
                f"{near_names(key, PARTS)}"
            )
    if skip:
        settings["skip"] = _policy(skip, model)
    return Diffusion(model, **settings)


def commit_rule(text: str) -> Commit:
    """Read `quota[:steps a block]`, `threshold[:p]` or `factor[:f]`.

    Raises:
        ConfigError: another rule, or no number.

    Example:
        >>> commit_rule("threshold:0.9")
        Threshold(p=0.9)
    """
    kind, _, value = text.partition(":")
    if kind not in _COMMIT:
        raise ConfigError(f"commit={text!r}; choose from {', '.join(_COMMIT)}.{near_names(kind, _COMMIT)}")
    make, number = _COMMIT[kind]
    return make(_number(number, f"commit={kind}", value)) if value else make()


def _policy(skip: dict[str, Any], model: Model) -> TokenSkip | ImportanceSkip:
    if skip.pop("kind", "skip") == "importance":
        if skip:
            raise ConfigError(f"{', '.join(skip)} belong to 'skip', which compares by cosine; leave them out")
        return ImportanceSkip()
    skip.setdefault("layer_k", scaled_layer_k(len(model.layout.layers)))
    return TokenSkip(**skip)


def _number(read: Callable[[str], Any], key: str, value: str) -> Any:
    try:
        return read(value)
    except ValueError:
        kind = "a whole number" if read is int else "a number"
        raise ConfigError(f"{key}={value!r} is not {kind}; write {key}=4 or the like") from None
