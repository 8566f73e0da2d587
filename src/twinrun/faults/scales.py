"""Faults of the factors some families put on embeddings and on what a layer adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute, outputs
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner


def embedding_scaled_twice() -> Fault:
    """The factor on the token embedding is applied again."""
    return Fault(
        name="embedding-scaled-twice",
        summary="token embeddings are multiplied by sqrt(hidden size) outside an embedding that already does it",
        thread=("https://github.com/TensorAuto/OpenTau/pull/179",),
        kind="model",
        where="token embedding",
        site=Site("module", _embedding_path),
        needs=("a scaled token embedding",),
        reason_against=_no_embedding_scale,
        plant=_scaled_again,
    )


def residual_multiplier_ignored() -> Fault:
    """What a layer adds is added whole."""
    return Fault(
        name="residual-multiplier-ignored",
        summary="what a layer adds to the residual is added whole, without the factor of the model",
        thread=("https://github.com/OpenNMT/CTranslate2/pull/1882",),
        kind="model",
        where="first layer",
        site=Site("module", _first_layer),
        needs=("a residual multiplier",),
        reason_against=_no_residual_multiplier,
        plant=_whole_residual,
    )


def _embedding(model: Model) -> nn.Module | None:
    get = getattr(model.core, "get_input_embeddings", None)
    found = get() if callable(get) else None
    return found if isinstance(found, nn.Module) else None


def _embedding_path(model: Model) -> tuple[str, ...]:
    return sites.paths(model, [_embedding(model)])


def _first_layer(model: Model) -> tuple[str, ...]:
    return sites.paths(model, model.layout.layers[:1])


def _no_embedding_scale(model: Model) -> str | None:
    scale = getattr(_embedding(model), "embed_scale", None)
    return None if isinstance(scale, Tensor) and float(scale) != 1 else "its token embedding has no factor"


def _no_residual_multiplier(model: Model) -> str | None:
    factors = [vars(layer).get("residual_multiplier", 1.0) for layer in model.layout.layers]
    return None if any(factor != 1 for factor in factors) else "it has no residual multiplier"


@contextmanager
def _scaled_again(runner: ModelRunner) -> Iterator[None]:
    part: Any = _embedding(runner.model)
    scale = float(part.embed_scale)
    with outputs([part], lambda out: out * scale):
        yield


@contextmanager
def _whole_residual(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for layer in runner.model.layout.layers:
            undo.enter_context(attribute(layer, "residual_multiplier", 1.0))
        yield
