"""Which prompt tokens are never dropped: the first few and the last share of the real ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from twinrun.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Tokens that every stage keeps. They are counted from the real tokens of a row, never from its padding.

    Source: SDTP, arXiv 2504.04514, section 4.1: the first 4 tokens and the last ("local") 10 %. Whether that is 10 % of
    the original or of the current length is not said there; here it is the original, rounded up. The last token of the
    prompt is kept whatever is asked for, because its logits are what the prefill is for.

    Attributes:
        first: tokens at the beginning.
        last: a float in [0, 1] is a share of the original prompt, an int a number of tokens.

    Example:
        >>> Protection().tokens(100), Protection().last_tokens(101)
        (14, 11)
    """

    first: int = 4
    last: float | int = 0.1

    def __post_init__(self) -> None:
        """Check types and ranges."""
        if not isinstance(self.first, int) or isinstance(self.first, bool) or self.first < 0:
            raise ConfigError(f"protect_first must be a number of tokens, at least 0, got {self.first!r}")
        if isinstance(self.last, bool) or not isinstance(self.last, (int, float)) or not self.last >= 0:
            raise ConfigError(
                f"protect_last must be a share in [0, 1] or a number of tokens, at least 0, got {self.last!r}"
            )
        if isinstance(self.last, float) and self.last > 1.0:
            raise ConfigError(f"protect_last={self.last} is a share beyond 1; give tokens as an int")

    def last_tokens(self, length: int) -> int:
        """Protected tokens at the end of a prompt of `length`, at least 1."""
        wanted = ceil_share(self.last, length) if isinstance(self.last, float) else self.last
        return min(length, max(1, wanted))

    def tokens(self, length: int) -> int:
        """Protected tokens of a prompt of `length` in all."""
        return min(length, self.first + self.last_tokens(length))


def ceil_share(share: float, length: int) -> int:
    """Smallest number of tokens that is not below `share * length`; 0.55 of 100 is 55, whatever floats say."""
    return math.ceil(round(share * length, 6))
