"""One tree of typed errors. Every message says the value got, the rule, and the fix, in at most three lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TwinrunError(Exception):
    """Root of everything twinrun raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 2


class ConfigError(TwinrunError, ValueError):
    """A request that cannot be met: a value outside its range, an unknown name, conflicting options.

    Also a `ValueError`, which is what Python code catches for a bad argument.
    """


class ShapeError(TwinrunError, ValueError):
    """Tensors or token lists whose sizes do not fit together. Also a `ValueError`, as in torch itself."""


class CheckpointError(TwinrunError, ValueError):
    """A checkpoint that is missing parts, is corrupt, or is stored in a format that would execute code."""


class UnsupportedModelError(TwinrunError, TypeError):
    """A model of a kind that the request cannot be served with. Also a `TypeError`: the object is of the wrong kind."""


class MissingBackendError(TwinrunError, ImportError):
    """Something this machine lacks: a package, a device, a network. Also an `ImportError`. Exit code 3."""

    exit_code = 3


class OutOfMemoryError(TwinrunError, MemoryError):
    """A prediction, made before any work starts, that the request does not fit into memory. Exit code 3."""

    exit_code = 3


class NonFiniteError(TwinrunError, ArithmeticError):
    """NaN or Inf where a number was needed; names the tensor."""


class TrainingError(TwinrunError, ArithmeticError):
    """Training that cannot teach: a loss term that is inert, or targets of other samples. Exit code 1."""

    exit_code = 1


class TraceError(TwinrunError, ValueError):
    """A recorded trace that is damaged, or two traces that cannot be compared."""


class SamplesError(TwinrunError, ValueError):
    """Samples of an expert against an amateur that are damaged, do not fit together, or belong to another run."""


class VerificationFailed(TwinrunError, AssertionError):
    """A verdict that was asserted and did not hold. Also an `AssertionError`, so pytest shows it as a failed test."""

    exit_code = 1


def near_names(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" for the closest known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
