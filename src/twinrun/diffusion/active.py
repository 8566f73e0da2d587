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
    """

    picks: Tensor
    real: Tensor

    @classmethod
    def everything(cls, rows: int, tokens: int, device: torch.device) -> Active:
        """Every token of every row."""
        picks = torch.arange(tokens, device=device).expand(rows, tokens)
        return cls(picks, torch.ones_like(picks, dtype=torch.bool))

    @property
    def width(self) -> int:
        """Tokens of a row, padding included."""
        return self.picks.shape[1]

    def narrow(self, keep: Tensor, width: int) -> tuple[Active, Tensor]:
        """Return the tokens of this set that are kept, and where in this set they stand, `[rows, width]`.

        Args:
            keep: `[rows, self.width]` booleans.
            width: the largest number kept in a row; not looked up here, because that waits for the device.

        Example:
            >>> both = Active.everything(2, 4, torch.device("cpu"))
            >>> keep = torch.tensor([[False, True, False, True], [False, False, False, True]])
            >>> both.narrow(keep, 2)[0].picks.tolist()
            [[1, 3], [3, 0]]
        """
        keep = keep & self.real
        order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        return Active(self.picks.gather(1, order), keep.gather(1, order)), order

    def take(self, block: Tensor) -> Tensor:
        """Rows of these tokens, `[rows, width, ...]`, out of a tensor `[rows, tokens, ...]`."""
        return taken(block, self.picks, 1)

    def put(self, block: Tensor, new: Tensor, dim: int = 1) -> None:
        """Write `new` over the rows of these tokens in a tensor whose dimension `dim` counts the block's tokens.

        Padding is written with what stands there already.
        """
        spread = _spread(self.picks, block, dim)
        real = _spread(self.real, block, dim)
        block.scatter_(dim, spread, torch.where(real, new, block.gather(dim, spread)))

    def slots(self, begin: int, nowhere: int) -> Tensor:
        """Slots of these tokens in a canvas whose block begins at slot `begin`; padding goes nowhere."""
        return torch.where(self.real, self.picks + begin, nowhere)

    def spread(self, tokens: int) -> Tensor:
        """The set as booleans `[rows, tokens]` over the block."""
        found = self.real.new_zeros(self.real.shape[0], tokens)
        return found.scatter(1, self.picks, self.real)


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
    return tensor.gather(dim, _spread(order, tensor, dim))


def _spread(index: Tensor, like: Tensor, dim: int) -> Tensor:
    """`[rows, width]` in the dimensions `dim - 1` and `dim` of the shape of `like`."""
    shape = [*like.shape]
    shape[dim] = index.shape[1]
    lead, trail = (1,) * (dim - 1), (1,) * (like.dim() - dim - 1)
    return index.reshape(*lead, *index.shape, *trail).expand(shape)
