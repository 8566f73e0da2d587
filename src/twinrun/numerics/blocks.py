"""Rows of logits, a few positions at a time: the one loop through which every full-vocabulary number is computed.

`[positions, vocab]` never exists; a block of it does. The size of a block is set by bytes, not by rows, so
the memory is the same for a vocabulary of 256 and of 256,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

BLOCK_BYTES = 12 * 2**20
"""Bytes of one float32 block, in which softmax and sums are taken: 20 rows of a 151,936-token vocabulary."""
HEAD_BLOCKS = 6
"""Blocks whose rows go through the head in one call. A call reads the whole head (272 MB there), so few rows a call are
slow; the logits of a call stay in the model's own precision. Measured on one CPU core with that vocabulary: 0.89 of the
time of the whole tables with 20 rows a block and 120 a call, 1.1 with 40 rows for both."""


class LogitRows(Protocol):
    """Anything that can produce rows of logits on demand."""

    @property
    def vocab_size(self) -> int:
        """Number of columns."""

    @property
    def num_rows(self) -> int:
        """Number of rows, one a position."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return logits `[stop - start, vocab]` in the precision that the model computed them in."""


class StoredLogits:
    """Logits that already exist as one `[rows, vocab]` tensor (small models, other engines, tests)."""

    def __init__(self, logits: Tensor) -> None:
        """Keep `logits` `[rows, vocab]`; nothing is copied."""
        self._logits = logits

    @property
    def vocab_size(self) -> int:
        """Number of columns."""
        return int(self._logits.shape[1])

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._logits.shape[0])

    def rows(self, start: int, stop: int) -> Tensor:
        """Return a view of rows `start` to `stop`."""
        return self._logits[start:stop]

    def last(self, count: int) -> StoredLogits:
        """Return a copy of the last `count` rows."""
        return StoredLogits(self._logits[-count:].clone())


def block_bounds(num_rows: int, vocab_size: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) so that a float32 block `[stop - start, vocab_size]` stays within `block_bytes`.

    Example:
        >>> list(block_bounds(5, 100, block_bytes=800))
        [(0, 2), (2, 4), (4, 5)]
    """
    size = max(1, block_bytes // (4 * vocab_size))
    for start in range(0, num_rows, size):
        yield start, min(start + size, num_rows)


def row_blocks(
    *sources: LogitRows, block_bytes: int = BLOCK_BYTES, head_blocks: int = HEAD_BLOCKS
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield (rows, their logits from each source), in blocks of `block_bytes` of float32 a source.

    The sources have equally many rows. The head of each is called once for `head_blocks` whole blocks.
    """
    num_rows, vocab = sources[0].num_rows, max(source.vocab_size for source in sources)
    whole = max(1, block_bytes // (4 * vocab)) * 4 * vocab
    for start, stop in block_bounds(num_rows, vocab, head_blocks * whole):
        logits = [source.rows(start, stop) for source in sources]
        for low, high in block_bounds(stop - start, vocab, block_bytes):
            yield slice(start + low, start + high), [part[low:high] for part in logits]
        del logits  # before the next call of the heads makes new ones


def last_rows(source: LogitRows, count: int) -> LogitRows:
    """Return the last `count` rows of a source; a source with a method `last` lets go of the memory of the others."""
    if count >= source.num_rows:
        return source
    last = getattr(source, "last", None)
    found: LogitRows = last(count) if callable(last) else _LastRows(source, count)
    return found


class _LastRows:
    """The last rows of a source that cannot be cut."""

    def __init__(self, source: LogitRows, count: int) -> None:
        self._source, self.num_rows, self.vocab_size = source, count, source.vocab_size

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows counted from the first kept one."""
        skipped = self._source.num_rows - self.num_rows
        return self._source.rows(skipped + start, skipped + stop)


def log_softmax(logits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probabilities `[..., vocab]` in float32 or, if asked for, float64 (float64 logits stay float64)."""
    wide = torch.float64 if torch.float64 in (logits.dtype, dtype) else torch.float32
    return torch.log_softmax(logits, dim=-1, dtype=wide)
