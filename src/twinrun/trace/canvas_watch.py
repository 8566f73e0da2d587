"""What the layers of a model were handed in one forward of a diffusion run, seen by hooks and by nobody's word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.verify.watch import by_name


@dataclass(slots=True)
class Handed:
    """What one layer got: hidden states, rotary tables, mask, cache."""

    hidden: Tensor
    rotary: tuple[Tensor, Tensor] | None
    mask: Tensor | None
    slots: Any

    def same_tokens(self, other: Handed, row: int) -> bool:
        """Whether two layers were handed the same tables for a row; in a batch each row drops its own tokens."""
        if self.rotary is None or other.rotary is None:
            return self.hidden.shape[1] == other.hidden.shape[1]
        ours, theirs = (h.rotary[0][min(row, h.rotary[0].shape[0] - 1)] for h in (self, other) if h.rotary)
        return ours.shape == theirs.shape and torch.equal(ours, theirs)

    def keys(self, row: int) -> int:
        """Slots that the queries of a row may attend to, the most of any query."""
        if self.mask is None:
            return int(self.hidden.shape[1] if self.slots is None else self.slots.width)
        mine = self.mask[min(row, self.mask.shape[0] - 1)]
        seen = mine if mine.dtype == torch.bool else mine >= 0
        return int(seen.sum(-1).max())


@dataclass(slots=True)
class LayerWatch:
    """Collects what each layer is handed; `take` empties it.

    The first call of a layer counts: while it is watched, a run calls its last layer once for all tokens and once
    more for the rows whose logits it reads.
    """

    calls: list[Handed] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def hook(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of a decoder layer."""
        if id(part) in self.seen:
            return
        self.seen.add(id(part))
        given = by_name(part, args, kwargs)
        hidden = given.get("hidden_states", args[0] if args else None)
        if isinstance(hidden, Tensor):
            rotary = given.get("position_embeddings")
            self.calls.append(
                Handed(hidden, rotary, given.get("attention_mask"), given.get("past_key_values"))
            )

    def take(self) -> list[Handed]:
        """Return the calls since the last time."""
        found, self.calls = self.calls, []
        self.seen.clear()
        return found

    hook.only_looks = True  # type: ignore[attr-defined]  # read by `models.lean`, which then need not step aside


@contextmanager
def watching_layers(layers: Sequence[nn.Module]) -> Iterator[LayerWatch]:
    """Set the hooks inside the block."""
    watch = LayerWatch()
    with ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.register_forward_pre_hook(watch.hook, with_kwargs=True).remove)
        yield watch


class Tables:
    """Rotary tables of all positions of a canvas, to tell which positions a layer was handed."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        """Take `[positions, head_dim]` tables of the positions 0, 1, 2, and so on."""
        self._table = torch.cat([cos, sin], dim=-1).float()

    def positions(self, handed: Handed, row: int, expected: Tensor) -> list[int]:
        """Positions whose tables a row was handed: those expected if they agree bit for bit, else the nearest.

        Args:
            handed: of one layer.
            row: of the batch.
            expected: `[tokens]` int64; another number of tokens is never as expected.
        """
        if handed.rotary is None:
            return []
        cos, sin = (t[min(row, t.shape[0] - 1)] for t in handed.rotary)
        mine = torch.cat([cos, sin], dim=-1).float()
        if len(mine) == len(expected) and torch.equal(mine, self._table[expected]):
            return list(expected.tolist())
        found = torch.cdist(mine, self._table).argmin(-1)
        return list(found.tolist())
