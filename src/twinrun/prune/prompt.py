"""Read off the arguments of a model's body what the prompt is: rows, tokens, padding. Once, before the prefill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A left-padded batch.

    Attributes:
        rows: rows of the batch.
        width: columns, padding counted.
        lengths: real tokens of each row, on the host.
        columns: `[rows, width]` int64 position of each column in its own row; -1 is padding.
        ids: `[rows, width]` token ids, or None where the body was fed embeddings.
    """

    rows: int
    width: int
    lengths: tuple[int, ...]
    columns: Tensor
    ids: Tensor | None

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Prompt:
        """Read the arguments of a body.

        Raises:
            UnsupportedModelError: a batch that is not padded on the left alone, or a mask of a form not known here.

        Cost: one read from the device, of one number a row, where there is a mask.
        """
        ids, embeds = named.get("input_ids"), named.get("inputs_embeds")
        fed = ids if isinstance(ids, Tensor) else embeds
        if not isinstance(fed, Tensor):
            raise UnsupportedModelError("the model was called without input_ids or inputs_embeds; give one")
        rows, width = int(fed.shape[0]), int(fed.shape[1])
        real = _real(named.get("attention_mask"), rows, width)
        places = torch.arange(width, device=fed.device).expand(rows, -1)
        if real is None:
            return cls(rows=rows, width=width, lengths=(width,) * rows, columns=places, ids=_rows(ids))
        counts = real.sum(1)
        columns = places - (width - counts)[:, None]
        is_left = (real == (columns >= 0)).all(1)
        told = torch.where(is_left, counts, -1).tolist()
        if min(told) < 1:
            row = told.index(min(told))
            raise UnsupportedModelError(
                f"row {row} of the batch is not padded on the left alone (or is all padding); pad the prompts of a "
                "batch on the left, as generate wants it"
            )
        return cls(rows=rows, width=width, lengths=tuple(told), columns=columns.clamp_min(-1), ids=_rows(ids))


def _rows(ids: Any) -> Tensor | None:
    return ids if isinstance(ids, Tensor) else None


def _real(mask: Any, rows: int, width: int) -> Tensor | None:
    """`[rows, width]` bool: which tokens are no padding; None where no mask says anything."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise UnsupportedModelError(
            f"the attention mask is a {type(mask).__name__}; pruning takes none, [rows, tokens] or [rows, 1, tokens, "
            "tokens]"
        )
    if mask.shape[-1] != width:
        raise UnsupportedModelError(
            f"the mask covers {mask.shape[-1]} tokens and the prompt has {width}: this is a part of a prompt (chunked "
            "prefill, or a static cache); run the whole prompt in one forward with a dynamic cache"
        )
    if mask.ndim == 4:  # the last token sees every real one
        last = mask[:, 0, -1]
        seen = last if last.dtype == torch.bool else last == 0
        return seen.expand(rows, -1)
    return mask.expand(rows, -1).bool()
