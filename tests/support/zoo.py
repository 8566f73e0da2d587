"""The small families of the fault suite, and a runner by name."""

from __future__ import annotations

from twinrun.models.model import Model
from twinrun.models.zoo import (
    CACHE_KINDS,
    CANDIDATES,
    CONFIGS,
    DTYPES,
    FAMILIES,
    KNOWN,
    LEARNED,
    OWN_WINDOW,
    REFUSED,
    ROUTED,
    make,
)
from twinrun.runners.registry import build_runner
from twinrun.runners.runner import ModelRunner

__all__ = [
    "CACHE_KINDS",
    "CANDIDATES",
    "CONFIGS",
    "DTYPES",
    "FAMILIES",
    "KNOWN",
    "LEARNED",
    "OWN_WINDOW",
    "REFUSED",
    "ROUTED",
    "make",
    "runner",
]


def runner(name: str, model: Model) -> ModelRunner:
    """Build a runner by the name that records call it."""
    return build_runner(name, model)
