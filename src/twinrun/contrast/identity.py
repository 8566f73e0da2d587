"""Is this the model that samples or an adapter were made of?"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from twinrun.errors import ConfigError
from twinrun.models.digest import model_digest
from twinrun.models.model import Model
from twinrun.numerics.precision import dtype_name, parse_dtype


def identity(model: Model) -> dict[str, str]:
    """Digest and precision of a model, as samples and adapters keep them."""
    return {"digest": model_digest(model), "dtype": dtype_name(model.dtype)}


def check_identity(model: Model, told: Mapping[str, Any] | None, what: str) -> None:
    """Refuse a model other than the one that `what` was made of; the precision it is loaded in does not matter.

    A checkpoint opened one precision up holds the same numbers, so it is cast back before it is compared.

    Args:
        model: the model given.
        told: "digest" and "dtype", or None where nothing is known.
        what: for the message.

    Raises:
        ConfigError: another model.

    Cost: one pass of SHA-256 over the weights; a second one, over a copy, where the precisions differ.
    """
    if not told:
        return
    if model_digest(model) == told["digest"]:
        return
    if told["dtype"] != dtype_name(model.dtype) and _cast_digest(model, str(told["dtype"])) == told["digest"]:
        return
    raise ConfigError(
        f"{what} was made of another model than {model.name} (digest {told['digest']}); give that model"
    )


def _cast_digest(model: Model, dtype: str) -> str:
    wanted = parse_dtype(dtype)
    twin = copy.deepcopy(model.core).to(wanted)
    twin.config.dtype = wanted
    return model_digest(Model(twin, name=model.name))
