"""Diffusion runners and their settings in words, as the command line and records write them.

A runner is `diffusion`, or `diffusion:` and its settings joined by plus signs: the cache first, then fields of
`DiffusionSettings` as NAME=VALUE, `delay` alone. Rules that take values are NAME:VALUE, for example

    diffusion:dual+refresh_every=2+commit=threshold:0.9
    diffusion:dual+skip=token:layer_k=3,threshold=0.999

`skip` alone is `skip=token`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from twinrun.diffusion.commit import Commit, Factor, Quota, Threshold
from twinrun.diffusion.diffusion import Diffusion
from twinrun.diffusion.forward import SkipPolicy
from twinrun.diffusion.importance import ImportanceSkip
from twinrun.diffusion.settings import CACHES
from twinrun.diffusion.skip import TokenSkip
from twinrun.diffusion.suffix import SuffixWindow
from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model

COMMITS = ("quota", "threshold", "factor")
SKIPS: dict[str, type[Any]] = {"token": TokenSkip, "importance": ImportanceSkip}
KIND = "diffusion"


def diffusion_named(name: str, model: Model, **given: Any) -> Diffusion:
    """Build the runner called `name` on a model; `given` are settings that the name leaves out.

    Raises:
        ConfigError: a word that is no setting, or a value that it cannot have.
        UnsupportedModelError: a causal model.

    Example:
        >>> m = load("builtin:diffusion")
        >>> diffusion_named("diffusion:dual+refresh_every=2", m).name
        'diffusion:dual+refresh_every=2'
    """
    return Diffusion(model, **{**given, **settings_of(name.removeprefix(KIND).removeprefix(":"), model)})


def settings_of(text: str, model: Model) -> dict[str, Any]:
    """Return the fields of `DiffusionSettings` that a name such as "dual+refresh_every=2" gives; "" gives none.

    Raises:
        ConfigError: a word that is no setting, a setting named twice, or a value that it cannot have.
    """
    words: dict[str, str] = {}
    for place, part in enumerate(text.split("+") if text else []):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = ("cache", part) if place == 0 else (part, "")
        if key in words:
            raise ConfigError(f"{part!r} in {text!r} sets {key} a second time; give it once")
        words[key] = value
    return read_settings(words, model)


def read_settings(words: Mapping[str, str], model: Model) -> dict[str, Any]:
    """Turn settings in words, by the names of `DiffusionSettings`, into values.

    Raises:
        ConfigError: an unknown name, or a value that cannot be read.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "block_length": lambda text: _integer("block_length", text),
        "commit": commit_of,
        "cache": _cache,
        "refresh_every": lambda text: _integer("refresh_every", text),
        "remasking": lambda text: text.replace("-", "_"),
        "skip": lambda text: skip_of(text or "token", model),
        "delay": _flag,
        "suffix_window": lambda text: SuffixWindow(
            **({"window": _integer("suffix_window", text)} if text else {})
        ),
    }
    for name in words:
        if name not in readers:
            raise ConfigError(
                f"{name!r} is no setting of diffusion; it has {', '.join(readers)}.{near_names(name, readers)}"
            )
    return {name: readers[name](text) for name, text in words.items()}


def commit_of(text: str) -> Commit:
    """Read a commit rule: quota, quota:STEPS, threshold, threshold:P, factor, factor:F.

    Raises:
        ConfigError: another name, a value that is no number, or one outside the rule's range.

    Example:
        >>> commit_of("threshold:0.8"), commit_of("quota")
        (Threshold(p=0.8), Quota(steps=None))
    """
    name, colon, value = text.partition(":")
    if name not in COMMITS:
        raise ConfigError(
            f"commit {text!r} is not one of quota[:STEPS], threshold[:P], factor[:F].{near_names(name, COMMITS)}"
        )
    if name == "quota":
        return Quota(_integer("quota", value)) if colon else Quota()
    rule = Threshold if name == "threshold" else Factor
    return rule(_number(name, value)) if colon else rule()


def skip_of(text: str, model: Model) -> SkipPolicy:
    """Read a skip policy: token or importance, behind a colon its fields as NAME=NUMBER, joined by commas.

    Without a `layer_k`, token has the one of its default that fits the depth of the model.

    Raises:
        ConfigError: another name or field, a value that is no number, or one outside its range.
    """
    name, _, rest = text.partition(":")
    if name not in SKIPS:
        raise ConfigError(f"skip {text!r} is not one of {', '.join(SKIPS)}.{near_names(name, SKIPS)}")
    kind = SKIPS[name]
    whole = {f.name: "float" not in str(f.type) for f in fields(kind) if "tuple" not in str(f.type)}
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in whole:
            raise ConfigError(
                f"skip {text!r}: {key!r} is not one of {', '.join(whole)}.{near_names(key, whole)}"
            )
        given[key] = (_integer if whole[key] else _number)(key, value)
    if kind is TokenSkip and "layer_k" not in given:
        return TokenSkip.for_depth(int(model.config.num_hidden_layers), **given)
    policy: SkipPolicy = kind(**given)
    return policy


def _cache(text: str) -> str:
    if text not in CACHES:
        raise ConfigError(f"cache {text!r} is not one of {', '.join(CACHES)}.{near_names(text, CACHES)}")
    return text


def _flag(text: str) -> bool:
    if text not in ("", "true", "false"):
        raise ConfigError(f"delay={text!r} is a switch; write delay, or leave it out")
    return text != "false"


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} {text!r} is no whole number; give one, such as 4") from None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} {text!r} is no number; give one, such as 0.9") from None
