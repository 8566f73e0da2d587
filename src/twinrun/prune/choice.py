"""Which tokens stay: the protected, then the highest scores, ties to the most recent; in their original order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twinrun.errors import ShapeError
from twinrun.prune.protection import Protection


def choose(
    scores: Tensor,
    positions: Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
    protection: Protection,
) -> Tensor:
    """Return the slots to keep, `[rows, max(keep)]` int64, ascending in each row.

    The order is total, so the choice is the same on every run and device: protected tokens first, then by score, equal
    scores by position, the most recent first. Constant or all-zero scores therefore keep the newest tokens. NaN counts
    as the lowest score (the record of the prefill raises when it is looked at). A row that keeps fewer than the longest
    is filled up with its rightmost padding, which stays masked; -1 is padding that is not there any more: two rows that
    kept equally many at an earlier stage, and so lost all padding, may part at a later one (`left` gives it back).

    Args:
        scores: `[rows, tokens]` float.
        positions: `[rows, tokens]` int64, place in the row's own prompt, ascending; -1 is padding, on the left.
        lengths: real tokens of each row's whole prompt.
        keep: real tokens that each row keeps, at least its protected ones.
        protection: which are never dropped.

    Raises:
        ShapeError: scores of another shape, or no numbers.

    Cost: two sorts of `tokens` numbers a row, on the device; nothing is read back to the host.

    Example:
        >>> choose(torch.zeros(1, 6), torch.arange(6)[None], [6], [4], Protection(first=1, last=1))
        tensor([[0, 3, 4, 5]])
    """
    if scores.shape != positions.shape or not scores.is_floating_point():
        raise ShapeError(
            f"scores are {tuple(scores.shape)} {str(scores.dtype).removeprefix('torch.')} for "
            f"{tuple(positions.shape)} tokens; give one floating-point score a token"
        )
    most = torch.finfo(torch.float32).max
    ranked = scores.detach().float().nan_to_num(nan=-most, posinf=most, neginf=-most)
    is_safe = _protected(positions, lengths, protection)
    ranked = ranked.masked_fill(is_safe, torch.inf).masked_fill_(positions < 0, -torch.inf)
    width = scores.shape[1]
    # Sorted from the newest to the oldest, a stable sort leaves equal scores in that order.
    order = ranked.flip(1).argsort(dim=1, descending=True, stable=True)
    slots = width - 1 - order[:, : max(keep)]
    if min(keep) < max(keep):
        slots = _filled(slots, positions, keep)
    return slots.sort(dim=1).values


def _protected(positions: Tensor, lengths: Sequence[int], protection: Protection) -> Tensor:
    """`[rows, tokens]` bool: tokens that are never dropped."""
    bounds = [length - protection.last_tokens(length) for length in lengths]
    if len(set(bounds)) == 1:
        is_late = positions >= bounds[0]
    else:
        is_late = positions >= torch.tensor(bounds, device=positions.device)[:, None]
    return is_late | ((positions < protection.first) & (positions >= 0))


def left(slots: Tensor, at: Tensor | None, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of the prompt and the positions of the slots that are kept.

    A slot of -1 gets position -1 and column 0, which is padding in every row that is shorter than the longest, and so
    in every row that needs it: masks are cut by columns, so whatever hidden state stands there is no key for any token.

    Args:
        slots: `[rows, kept]` int64, what `choose` returned.
        at: `[rows, tokens]` columns of the tokens that were chosen from; None at the first stage, where they are slots.
        positions: `[rows, tokens]` of these tokens.

    Example:
        >>> left(torch.tensor([[-1, 1]]), torch.tensor([[2, 3]]), torch.tensor([[1, 2]]))
        (tensor([[0, 3]]), tensor([[-1,  2]]))
    """
    there, is_gone = slots.clamp(min=0), slots < 0
    columns = there if at is None else at.gather(1, there)
    return columns.masked_fill(is_gone, 0), positions.gather(1, there).masked_fill(is_gone, -1)


def slots_of(wanted: Tensor, at: Tensor) -> Tensor:
    """Slots of some columns among those that are left, `at`, both ascending; -1 for padding that is not.

    Example:
        >>> slots_of(torch.tensor([[0, 3]]), torch.tensor([[2, 3, 5]]))
        tensor([[-1,  1]])
    """
    slots = torch.searchsorted(at, wanted).clamp(max=at.shape[1] - 1)
    return slots.masked_fill(at.gather(1, slots) != wanted, -1)


def _filled(slots: Tensor, positions: Tensor, keep: Sequence[int]) -> Tensor:
    """Replace what is beyond a row's own number by its rightmost padding slots, -1 where there are none left."""
    own = torch.tensor(keep, device=slots.device)[:, None]
    pads = (positions < 0).sum(1, keepdim=True)
    place = torch.arange(slots.shape[1], device=slots.device)[None]
    return torch.where(place < own, slots, (pads - 1 - (place - own)).clamp(min=-1))
