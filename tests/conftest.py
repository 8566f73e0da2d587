"""Shared by all tests: one thread, no hub, shared models checked for leaks, one hypothesis profile."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

import twinrun as tr

torch.set_num_threads(1)
settings.register_profile(
    "twinrun",
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("twinrun")


class _Deprecations(logging.Handler):
    """Keeps what transformers only logs about deprecated calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower():
            self.seen.append(message)


@pytest.fixture(autouse=True)
def no_logged_deprecation() -> Iterator[None]:
    """Fail a test in which transformers logs a deprecation; warnings are errors already (pyproject)."""
    handler = _Deprecations()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not handler.seen, handler.seen


def fingerprint(module: nn.Module) -> tuple[str, int]:
    """Hash of every tensor of a module, and the number of hooks on it."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    return digest.hexdigest(), hooks


@pytest.fixture(scope="session")
def shared_llama() -> Iterator[tr.Model]:
    """A small random Llama in float32. Read only: changed weights or forgotten hooks fail the session."""
    from tests.support.zoo import make

    model = make("llama", "float32")
    before = fingerprint(model.model)
    yield model
    assert fingerprint(model.model) == before, "a test changed the shared model"


@pytest.fixture(scope="session")
def expert() -> tr.Model:
    """The built-in expert in float32. Read only."""
    return tr.load("builtin:expert", dtype="float32")


@pytest.fixture(scope="session")
def amateur() -> tr.Model:
    """The built-in amateur in float32. Read only."""
    return tr.load("builtin:amateur", dtype="float32")


@pytest.fixture
def repo() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parent.parent
