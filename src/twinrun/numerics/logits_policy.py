"""Which rows of logits are made, in what precision their softmax is taken, and how many rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from twinrun.errors import ConfigError, near_names
from twinrun.numerics.precision import dtype_name, parse_dtype

_KINDS = ("last", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsPolicy:
    """Settings of the logits of a scored text. The default scores every position, streamed, in float32.

    Args:
        keep: "all" is a row for every scored position; "last" the last row only; a number the last that many.
        dtype: precision of softmax, sums and log-probabilities: "float32" or "float64". The logits themselves stay
            in the model's own precision until then; float64 logits stay float64.
        block: rows whose softmax is taken at a time; None sets it by bytes (12 MiB of a block). Six blocks go
            through the head in one call. As many rows as the text has make the whole table.

    Raises:
        ConfigError: a `keep` that is no word of these and no positive number, a half precision, or a block below 1.

    Cost: six blocks in the model's precision, and four of `dtype`, whatever the length of the text.

    Example:
        >>> LogitsPolicy(keep="last").rows(100), LogitsPolicy(keep=3).rows(100), LogitsPolicy().rows(100)
        (1, 3, 100)
    """

    keep: int | Literal["last", "all"] = field(
        default="all", metadata={"help": "last, all, or a number of last rows"}
    )
    dtype: str | torch.dtype = field(
        default="float32", metadata={"help": "of the softmax: float32 or float64"}
    )
    block: int | None = field(
        default=None, metadata={"help": "rows whose softmax is taken at a time; unset: by bytes"}
    )

    def __post_init__(self) -> None:
        """Check, and store the precision under its full name."""
        _check_keep(self.keep)
        precision = parse_dtype(self.dtype)
        if precision.itemsize < 4:
            name = dtype_name(precision)
            raise ConfigError(
                f"a softmax in {name} was asked for; {_WHY_NOT[precision]} (docs/casebook/half-precision-logits.md): "
                "use float32 or float64"
            )
        object.__setattr__(self, "dtype", dtype_name(precision))
        if self.block is not None and (not _is_count(self.block) or self.block < 1):
            raise ConfigError(f"block must be at least 1 row, got {self.block!r}; None sets it by bytes")

    @property
    def softmax_dtype(self) -> torch.dtype:
        """Precision of the softmax."""
        return parse_dtype(self.dtype)

    def rows(self, count: int) -> int:
        """Rows that are kept of `count` scored positions."""
        if self.keep == "all":
            return count
        return min(count, 1 if self.keep == "last" else int(self.keep))

    def block_bytes(self, vocab_size: int, standard: int) -> int:
        """Bytes of one block as `row_blocks` counts them, 4 a logit; `standard` where no number of rows is set."""
        if self.block is not None:
            return 4 * vocab_size * self.block
        return standard * 4 // self.softmax_dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {"keep": self.keep, "dtype": self.dtype, "block": self.block}


_WHY_NOT = {
    torch.float16: "float16 overflows above 65,504 and has no probability below 6e-8",
    torch.bfloat16: "bfloat16 has 8 bits of mantissa, steps of 0.125 for a log-probability near 16",
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_keep(keep: object) -> None:
    if isinstance(keep, str) and keep in _KINDS:
        return
    if not _is_count(keep) or int(str(keep)) < 1:
        hint = near_names(keep, _KINDS) if isinstance(keep, str) else ""
        raise ConfigError(
            f"keep must be 'last', 'all' or a number of last rows, at least 1; got {keep!r}.{hint}"
        )
