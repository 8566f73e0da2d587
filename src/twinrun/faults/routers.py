"""Faults of the routers of a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from twinrun.faults import sites
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute
from twinrun.models.model import Model
from twinrun.runners.runner import ModelRunner

SWITCH = "norm_topk_prob"


def weights_renormalised() -> Fault:
    """The weights of the chosen experts are made to sum to one where they must not be, or are not where they must."""
    return Fault(
        name="router-normalisation-swapped",
        summary="the weights of the chosen experts are scaled to a sum of one if the model leaves them, and left if "
        "it scales them",
        thread=(
            "https://github.com/lablup/mlxcel/pull/391",
            "https://github.com/pytorch/torchtitan/issues/1448",
        ),
        kind="model",
        where="router of the first layer with experts",
        site=Site("module", _first_block),
        needs=("mixture of experts with more than one chosen",),
        reason_against=_no_switch,
        plant=_switched,
    )


def _routers(model: Model) -> list[nn.Module]:
    found = (model.core.get_submodule(name) for name in model.layout.routers)
    return [part for part in found if isinstance(vars(part).get(SWITCH), bool)]


def _first_block(model: Model) -> tuple[str, ...]:
    """The module around the first router: weights meet the experts there."""
    return tuple(path.rpartition(".")[0] for path in sites.first_called(model, _routers(model)))


def _no_switch(model: Model) -> str | None:
    return None if _routers(model) else "it has no routers that can scale their weights or leave them"


@contextmanager
def _switched(runner: ModelRunner) -> Iterator[None]:
    with ExitStack() as undo:
        for part in _routers(runner.model):
            undo.enter_context(attribute(part, SWITCH, not getattr(part, SWITCH)))
        yield
