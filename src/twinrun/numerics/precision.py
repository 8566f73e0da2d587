"""Floating-point precisions: their names, the next one up (the ruler), and the size of one rounding step."""

from __future__ import annotations

import math

import torch

from twinrun.errors import ConfigError, near_names

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_ALIASES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
_ONE_UP = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype called `name` ("bfloat16", "bf16", ...); a torch dtype passes through.

    Raises:
        ConfigError: the name is not one of the four floating-point precisions twinrun runs models in.

    Example:
        >>> parse_dtype("bf16")
        torch.bfloat16
    """
    found = name if isinstance(name, torch.dtype) else DTYPES.get(_ALIASES.get(name, name))
    if found is None or found not in DTYPES.values():
        known = [*DTYPES, *_ALIASES]
        raise ConfigError(
            f"unknown dtype {name!r}; use one of {', '.join(DTYPES)}.{near_names(str(name), known)}"
        )
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """Return "bfloat16" for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def one_up(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of the oracle for models run in `dtype`: float32 for half types, float64 for float32.

    Raises:
        ConfigError: `dtype` is float64 or no floating-point type; torch has nothing above it.
    """
    if dtype not in _ONE_UP:
        raise ConfigError(
            f"no precision above {dtype_name(dtype)}: the oracle needs one; run the model in float32 or below"
        )
    return _ONE_UP[dtype]


def ulp(dtype: torch.dtype, magnitude: float) -> float:
    """Distance between neighbouring `dtype` numbers at `magnitude` (units of the magnitude itself).

    Example:
        >>> ulp(torch.bfloat16, 20.0)
        0.125
    """
    info = torch.finfo(dtype)
    size = max(abs(magnitude), info.smallest_normal)
    return math.ldexp(1.0, math.frexp(size)[1] - 1) * info.eps
