"""Which tokens of a block go on: unequal numbers in the rows of a batch, computed together.

The set of a row is padded to the longest of the batch. Padding is computed and thrown away: its keys and values go to
the slot that is never read, its results are not put anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Active:
    """A set of tokens in each row of a block.

    Attributes:
        picks: `[rows, width]` int64 indices into the block, ascending where real, none twice in a row.
        real: `[rows, width]` booleans; False is padding.
        tokens: tokens of the block.
        full: no padding, as far as the host knows.
    """

    picks: Tensor
    real: Tensor
    tokens: int
    full: bool = False

    @classmethod
    def everything(cls, rows: int, tokens: int, device: torch.device) -> Active:
        """Every token of every row."""
        picks = torch.arange(tokens, device=device).expand(rows, tokens)
        return cls(picks, torch.ones_like(picks, dtype=torch.bool), tokens, full=True)

    @property
    def width(self) -> int:
        """Tokens of a row, padding included."""
        return self.picks.shape[1]

    def narrow(self, keep: Tensor, width: int, *, full: bool = False) -> tuple[Active, Tensor]:
        """Return the tokens of this set that are kept, and where in this set they stand, `[rows, width]`.

        Args:
            keep: `[rows, self.width]` booleans.
            width: the largest number kept in a row; not looked up here, because that waits for the device.
            full: every row keeps so many.

        Example:
            >>> both = Active.everything(2, 4, torch.device("cpu"))
            >>> keep = torch.tensor([[False, True, False, True], [False, False, False, True]])
            >>> both.narrow(keep, 2)[0].picks.tolist()
            [[1, 3], [3, 0]]
        """
        if not self.full:
            keep = keep & self.real
        order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        return self._ordered(order, keep.gather(1, order), full)

    def only(self, places: Tensor) -> tuple[Active, Tensor]:
        """Return the tokens at `places`, `[width]` ascending, in a set of one row without padding; see `narrow`."""
        order = places[None]
        return self._ordered(order, torch.ones_like(order, dtype=torch.bool), True)

    def _ordered(self, order: Tensor, real: Tensor, full: bool) -> tuple[Active, Tensor]:
        picks = order if self.width == self.tokens and self.full else self.picks.gather(1, order)
        return Active(picks, real, self.tokens, full), order

    def take(self, block: Tensor) -> Tensor:
        """Rows of these tokens, `[rows, width, ...]`, out of a tensor `[rows, tokens, ...]`."""
        return taken(block, self.picks, 1)

    def put(self, block: Tensor, new: Tensor, dim: int = 1) -> None:
        """Write `new` over the rows of these tokens in a tensor whose dimension `dim` counts the block's tokens.

        Padding is written with what stands there already. The two dimensions of rows and tokens must be in one piece.
        """
        rows = block.view(*block.shape[: dim - 1], -1, *block.shape[dim + 1 :])
        at, new = _flat(self.picks, self.tokens), new.flatten(dim - 1, dim)
        if not self.full:
            real = self.real.view(*(1,) * (dim - 1), -1, *(1,) * (rows.dim() - dim))
            new = torch.where(real, new, rows.index_select(dim - 1, at))
        rows.index_copy_(dim - 1, at, new)

    def slots(self, begin: int, nowhere: int) -> Tensor:
        """Slots of these tokens in a canvas whose block begins at slot `begin`; padding goes nowhere."""
        at = self.picks + begin
        return at if self.full else torch.where(self.real, at, nowhere)

    def spread(self) -> Tensor:
        """The set as booleans `[rows, tokens]` over the block."""
        return self.real.new_zeros(self.real.shape[0], self.tokens).scatter_(1, self.picks, self.real)


def computed_width(width: int, rows: int, tokens: int, device: torch.device) -> int:
    """Width at which sets of `width` of `tokens` tokens are computed: on a CPU one that its matrix products like.

    There 9 to 15 rows of a float32 product can cost more than 16 (another path of MKL), so padding is the cheaper way
    (12 and 16 tokens in `layer_costs` of benchmarks/results/diffusion_skip.json).

    Example:
        >>> [computed_width(n, 1, 64, torch.device("cpu")) for n in (5, 8, 9, 15, 20)]
        [5, 8, 16, 16, 20]
    """
    padded = -(-16 // rows)
    return padded if device.type == "cpu" and 8 < width * rows < 16 and padded < tokens else width


def taken(tensor: Tensor, order: Tensor, dim: int) -> Tensor:
    """Gather along `dim`; `order` is `[rows, width]`, rows being the dimension in front of `dim`."""
    flat = tensor.flatten(dim - 1, dim).index_select(dim - 1, _flat(order, tensor.shape[dim]))
    return flat.view(*tensor.shape[: dim - 1], *order.shape, *tensor.shape[dim + 1 :])


def _flat(index: Tensor, width: int) -> Tensor:
    """`[rows, n]` indices into rows of `width` as indices into all rows together."""
    rows = index.shape[0]
    if rows > 1:
        index = index + torch.arange(0, rows * width, width, device=index.device)[:, None]
    return index.flatten()
