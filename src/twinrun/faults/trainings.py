"""Faults of a scorer's training, as public code of SDTP has them (casebook, case 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from twinrun.errors import TwinrunError
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute
from twinrun.faults.trainee import TRAINEE, Trainee
from twinrun.models.model import Model
from twinrun.prune.objective import Objective, Terms
from twinrun.prune.samples import Sample
from twinrun.prune.simulate import refuse_masks

CODE = "https://github.com/Shuaijun-LIU/SDTP"


def can_train(model: Model) -> str | None:
    """None for a model whose scorers can be trained, else the reason why not."""
    try:
        refuse_masks(model)
    except TwinrunError as error:
        return str(error)
    return None if len(model.layout.layers) > 1 else "it has one layer"


training_fault = partial(Fault, kind="runner", way="training", runners=(TRAINEE,), reason_against=can_train)


def loss_terms_overwritten() -> Fault:
    """Set to zero in the branch of layers that do not prune."""
    return training_fault(
        name="loss-terms-overwritten",
        summary="mean square error and ranking loss are set to zero in a loop over layers, after they were computed",
        thread=(CODE, "https://github.com/NEBULIS-Lab/E-RECAP"),
        where="loss terms of the saliency, from the first step on",
        site=Site("loss terms"),
        needs=("a training of scorers",),
        plant=_overwritten,
    )


def targets_of_other_samples() -> Fault:
    """Saliency looked up by place, after the data were shuffled once more."""
    return training_fault(
        name="targets-of-other-samples",
        summary="marking and training shuffle the data each in its own way, and saliency is looked up by place",
        thread=(CODE,),
        where="targets that a sample is handed, at the first step",
        site=Site("targets"),
        needs=("a training of scorers", "two samples"),
        plant=_by_place,
    )


@contextmanager
def _overwritten(trainee: Trainee) -> Iterator[None]:
    objective = trainee.training.objective
    whole = objective.terms

    def terms(samples: Sequence[Sample], step: int) -> Terms:
        found = whole(samples, step)
        for name, value in found.values.items():
            if name != "lm":
                found.values[name] = torch.zeros_like(value)
        return found

    with attribute(objective, "terms", terms):
        yield


@contextmanager
def _by_place(trainee: Trainee) -> Iterator[None]:
    objective, samples = trainee.training.objective, trainee.samples
    places = {samples[i].name: i for i in range(len(samples))}

    def target_of(sample: Sample) -> Tensor:
        shuffled = samples[(places[sample.name] + 1) % len(samples)]
        return Objective.target_of(objective, shuffled)

    with attribute(objective, "target_of", target_of):
        yield
