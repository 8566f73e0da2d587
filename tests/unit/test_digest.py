"""The digest of a model: one bit, the precision and the config count, the place does not."""

from __future__ import annotations

import copy

import torch

import twinrun as tr
from twinrun.models.digest import model_digest
from twinrun.models.model import Model


def test_every_bit_counts_and_the_name_does_not(amateur):
    first = model_digest(amateur)
    same = Model(copy.deepcopy(amateur.model), None, name="elsewhere")
    assert model_digest(same) == first == model_digest(tr.load("builtin:amateur", dtype="float32"))
    with torch.no_grad():
        last = list(same.model.parameters())[-1].view(-1)
        last[-1] = torch.nextafter(last[-1], torch.tensor(1e9))
    assert model_digest(same) != first


def test_precision_and_config_count(amateur):
    first = model_digest(amateur)
    assert model_digest(tr.load("builtin:amateur", dtype="bfloat16")) != first
    other = Model(copy.deepcopy(amateur.model))
    other.model.config.rope_parameters = {**other.model.config.rope_parameters, "rope_theta": 1234.0}
    assert model_digest(other) != first
