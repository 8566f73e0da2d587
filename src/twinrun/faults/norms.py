"""Faults of normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute, norms
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner


def epsilon_off() -> Fault:
    """The epsilon of every norm is ten times too large."""
    return Fault(
        name="norm-epsilon-off",
        summary="the epsilon of every norm is hard-coded to ten times the value of the training",
        thread=(
            "https://github.com/ggml-org/llama.cpp/issues/2373",
            "https://github.com/apache/tvm/pull/15856",
        ),
        kind="model",
        where="norm of the first layer",
        site=Site("module", _first_norm),
        reason_against=_no_epsilon,
        plant=_larger_epsilon,
    )


def _first_norm(model: Model) -> tuple[str, ...]:
    return sites.first_called(model, (part for part, _ in norms(model)))


def _no_epsilon(model: Model) -> str | None:
    return None if norms(model) else "its norms keep no readable epsilon"


@contextmanager
def _larger_epsilon(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for part, name in norms(runner.model):
            undo.enter_context(attribute(part, name, 10 * getattr(part, name)))
        yield
