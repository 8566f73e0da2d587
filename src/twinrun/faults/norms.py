"""Faults of normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attentions, attribute, norms
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

QK_NAMES = ("q_norm", "k_norm")


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


def qk_norm_dropped() -> Fault:
    """Queries and keys are not normalised."""
    return Fault(
        name="qk-norm-dropped",
        summary="the norms of queries and keys are left out in every layer",
        thread=("https://github.com/paiml/aprender/pull/1228",),
        kind="model",
        where="query and key norms of the first layer",
        site=Site("module", _first_qk_norms),
        needs=("query and key norms",),
        reason_against=_no_qk_norms,
        plant=_unnormalised,
    )


def _qk_norms(model: Model) -> list[nn.Module]:
    found = (getattr(part, name, None) for part in attentions(model) for name in QK_NAMES)
    return [part for part in found if isinstance(part, nn.Module)]


def _first_qk_norms(model: Model) -> tuple[str, ...]:
    return sites.paths(model, _qk_norms(model)[: len(QK_NAMES)])


def _no_qk_norms(model: Model) -> str | None:
    return None if _qk_norms(model) else "its queries and keys are not normalised"


def _first_norm(model: Model) -> tuple[str, ...]:
    return sites.first_called(model, (part for part, _ in norms(model)))


def _no_epsilon(model: Model) -> str | None:
    return None if norms(model) else "its norms keep no readable epsilon"


@contextmanager
def _unnormalised(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for part in _qk_norms(runner.model):
            undo.callback(part.register_forward_hook(lambda _m, args, _out: args[0]).remove)
        yield


@contextmanager
def _larger_epsilon(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for part, name in norms(runner.model):
            undo.enter_context(attribute(part, name, 10 * getattr(part, name)))
        yield
