"""transformers' quantised caches: keys and values in few bits, the newest tokens in full where the format needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from transformers import QuantizedCache

from twinrun.errors import ConfigError, MissingBackendError, UnsupportedModelError
from twinrun.models.model import Model
from twinrun.models.positions import layer_windows

BACKENDS: dict[str, tuple[int, ...]] = {"fp8": (8,), "quanto": (2, 4), "hqq": (1, 2, 3, 4, 8)}
"""Bits that each backend of transformers can store."""
PACKAGES = {"quanto": ("optimum.quanto", "'twinrun[quantized]'"), "hqq": ("hqq", "hqq")}
"""Module that a backend needs, and what to install for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedOptions:
    """Settings of the quantised cache.

    Source: KIVI (Liu et al. 2024, arXiv:2402.02750) for group-wise integers with a residual; transformers' classes
    differ from it (keys and values grouped alike).
    """

    bits: int = field(default=8, metadata={"help": "bits a number: 8, 4 or 2 (with hqq also 3 and 1)"})
    backend: str = field(
        default="auto", metadata={"help": "fp8, quanto or hqq; auto is fp8 for 8 bits, else quanto"}
    )
    residual_length: int = field(
        default=128, metadata={"help": "newest tokens kept in full precision; fp8 keeps none"}
    )
    group_size: int = field(default=64, metadata={"help": "numbers that share a scale; fp8 has one a tensor"})

    def __post_init__(self) -> None:
        """Check ranges, and that the backend can store so many bits."""
        if self.backend != "auto" and self.backend not in BACKENDS:
            raise ConfigError(f"backend must be auto, fp8, quanto or hqq, got {self.backend!r}")
        if self.bits not in BACKENDS[self.chosen]:
            known = " or ".join(map(str, BACKENDS[self.chosen]))
            raise ConfigError(f"bits={self.bits} with backend {self.chosen!r}, which stores {known}")
        for name in ("residual_length", "group_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def chosen(self) -> str:
        """The backend that will store them."""
        return self.backend if self.backend != "auto" else "fp8" if self.bits == 8 else "quanto"


def quantized_cache(model: Model, options: QuantizedOptions) -> Callable[[int], Any]:
    """Return what makes empty quantised caches for a model.

    Raises:
        MissingBackendError: the backend's package is not installed.
        UnsupportedModelError: a model with layers that are not full attention.
    """
    backend = options.chosen
    package, install = PACKAGES.get(backend, ("", ""))
    if package and not _is_installed(package):
        raise MissingBackendError(
            f"a {options.bits}-bit cache needs {package}, which is not installed: "
            f"pip install {install}, or take bits=8"
        )
    if any(layer_windows(model)):
        raise UnsupportedModelError(
            f"{type(model.core).__name__} has sliding-window layers, which transformers does not quantise; "
            "use cache='sliding'"
        )
    settings = (
        {}
        if backend == "fp8"
        else {
            "nbits": options.bits,
            "q_group_size": options.group_size,
            "residual_length": options.residual_length,
        }
    )
    return lambda _length: QuantizedCache(backend, model.config, **settings)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
