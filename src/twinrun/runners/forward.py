"""One forward of a model on a left-padded batch, giving hidden states if they can be streamed, else logits.

The model's own forward always runs, with `logits_to_keep=1`; hidden states are caught at the body. The row
of logits that the forward returns is compared with head(hidden) of the same row: if they are not the same
numbers (somebody patched the forward, say), `TailMismatch` is raised and the caller falls back to the
forward's own logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.models.model import Model
from twinrun.numerics.blocks import LogitRows, StoredLogits
from twinrun.records.scores import Routes, Scores
from twinrun.runners.routing import RouteRecorder
from twinrun.runners.watched_head import WatchedHead, watching


class TailMismatch(Exception):
    """The forward's logits are not head(hidden); internal, never reaches a user."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows of unequal length, padded on the left to `[rows, width]`. `mask` is None when no row is padded."""

    ids: Tensor
    mask: Tensor | None
    positions: Tensor

    @property
    def position_ids(self) -> Tensor | None:
        """Positions where the model must be told them: where a row is padded."""
        return None if self.mask is None else self.positions

    @classmethod
    def of(cls, rows: list[list[int]], pad_id: int, device: torch.device) -> Padded:
        """Pad `rows`; positions count real tokens from 0 (padded slots get 0)."""
        width = max(map(len, rows))
        lengths = torch.tensor([len(r) for r in rows], device=device)
        ids = torch.tensor([[pad_id] * (width - len(r)) + r for r in rows], device=device)
        slots = torch.arange(width, device=device)[None]
        mask = (slots >= (width - lengths)[:, None]).long()
        positions = (slots - (width - lengths)[:, None]).clamp_min(0)
        return cls(ids, None if bool(mask.all()) else mask, positions)


class HiddenRows:
    """Logits streamed from hidden states `[rows, width]` through the model's head."""

    def __init__(self, model: Model, hidden: Tensor) -> None:
        """Keep hidden states; logits are computed when asked for."""
        self._model, self._hidden = model, hidden
        head = model.layout.head
        self.vocab_size = int(getattr(head, "out_features", 0) or model.logits_of(hidden[:1]).shape[-1])

    @property
    def num_rows(self) -> int:
        """Number of positions."""
        return int(self._hidden.shape[0])

    def rows(self, start: int, stop: int) -> Tensor:
        """Head and tail on `start` to `stop`, in the precision of the hidden states."""
        return self._model.logits_of(self._hidden[start:stop])

    def last(self, count: int) -> HiddenRows:
        """Keep a copy of the last `count` hidden states only."""
        return HiddenRows(self._model, self._hidden[-count:].clone())


def forward(
    model: Model,
    ids: Tensor,
    *,
    mask: Any = None,
    positions: Tensor | None = None,
    cache: Any = None,
    last: bool | int = True,
) -> Tensor:
    """Logits of one forward of the model itself: `[rows, 1, vocab]`, all positions with `last=False`, or the last few.

    Mask and positions are passed only where they are given: without padding and windows the model is called the
    way its own documentation shows. The mask is `[rows, cached + tokens]` with 0 for padding, or already in the form
    that attention takes (`twinrun.runners.window`). A model whose forward cannot leave out logits computes all and
    the last are cut out.
    """
    kwargs: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
    if cache is not None:
        kwargs["past_key_values"] = cache
    if mask is not None:
        kwargs["attention_mask"] = mask
    if positions is not None and "position_ids" in model.accepts:
        kwargs["position_ids"] = positions
    if last and "logits_to_keep" in model.accepts:
        kwargs["logits_to_keep"] = int(last)
    output = model.model(**kwargs)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    found: Tensor = output[0] if logits is None else logits
    return found[:, -int(last) :] if last else found


class Reader:
    """Runs forwards and returns per-position features: hidden states, or logits where those cannot be streamed."""

    def __init__(
        self,
        model: Model,
        caught: list[Tensor] | None,
        routes: RouteRecorder,
        keep: int = 0,
        head: WatchedHead | None = None,
    ) -> None:
        """Use `reading` to get one; it sets and removes the hooks that fill `caught` and `head`."""
        self._keep, self._head = keep, head
        self._model = model
        self._caught = caught
        self._newest: tuple[Tensor, Tensor] | None = None
        self._has_taken = False
        self.routes = routes
        self.step_note = ""
        """What a fast step that ran for this reader adds to `path`."""

    @property
    def path(self) -> str:
        """How the logits come about, for the record."""
        source = "streamed from hidden states" if self._caught is not None else "the model's own forward"
        return source + self.step_note

    def __call__(
        self, ids: Tensor, *, mask: Any = None, positions: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """One forward; returns features `[rows, tokens, width or vocab]`."""
        last = self._keep if self._caught is None else True
        if self._head is not None:
            self._head.forget()
        logits = forward(self._model, ids, mask=mask, positions=positions, cache=cache, last=last)
        self.routes.end_forward(ids.shape)
        if self._caught is None:
            return logits
        hidden = self._caught.pop()
        self._caught.clear()
        is_first, self._newest = self._newest is None, (hidden[:, -1:], logits)
        if is_first:
            self.check()
        return hidden

    def took(self, outs: list[Tensor], shape: torch.Size) -> Tensor:
        """Take one forward that ran elsewhere: logits `[rows, 1, vocab]`, hidden states, what routers returned."""
        logits, rest = outs[0], outs[1:]
        self.routes.put(rest[1:] if self._model.layout.streams else rest)
        self.routes.end_forward(shape)
        if self._caught is None:
            return logits
        self._caught.clear()
        is_first, self._newest = not self._has_taken, (rest[0], logits)
        self._has_taken = True
        if is_first:
            self.check()
        return rest[0]

    def check(self) -> None:
        """Hold the newest forward's last row against head(hidden); raise `TailMismatch` unless equal bit for bit.

        Cost: one row through the head, which reads all of its weights; none where the head was seen to make that row.
        """
        if self._newest is not None:
            hidden, theirs = self._newest
            if self._head is not None and self._head.made(hidden, theirs):
                return
            ours = self._model.logits_of(hidden)
            if ours.shape != theirs.shape or not torch.equal(ours.to(theirs.dtype), theirs):
                raise TailMismatch

    def scores(
        self,
        row: list[int],
        start: int,
        features: Tensor,
        seconds: float,
        routes: Routes | None,
        cache: Any = None,
    ) -> Scores:
        """Build the record of one row from its features `[len(row) - start + 1, width or vocab]`."""
        rows: LogitRows = (
            HiddenRows(self._model, features) if self._caught is not None else StoredLogits(features)
        )
        positions = torch.arange(start - 1, len(row))
        return Scores(
            tokens=tuple(row),
            positions=positions,
            logits=rows,
            seconds=seconds,
            path=self.path,
            routes=routes,
            cache_lengths=cache_lengths(cache),
        )


@contextmanager
def reading(
    model: Model, *, stream: bool = True, keep: int = 0, watch_head: bool = False
) -> Iterator[Reader]:
    """Open a `Reader`; hooks are gone when the block ends, however it ends.

    `keep`: where logits cannot be streamed, how many last rows of them each forward makes; 0 is all.
    `watch_head`: look on in each forward as the head makes its logits, which saves `Reader.check` a product.
    """
    caught: list[Tensor] | None = None
    head: WatchedHead | None = None
    with ExitStack() as undo:
        if stream and not model.is_compiled and model.layout.streams:
            caught = []
            undo.callback(model.layout.body.register_forward_hook(catch_output(caught)).remove)
            head = undo.enter_context(watching(model)) if watch_head else None
        yield Reader(model, caught, undo.enter_context(RouteRecorder.on(model)), keep, head)


def cache_lengths(cache: Any) -> tuple[int, ...]:
    """Cached positions of each layer of a transformers cache; empty for None."""
    return () if cache is None else tuple(int(layer.get_seq_length()) for layer in cache.layers)


def catch_output(into: list[Tensor]) -> Any:
    """Return a forward hook that puts a module's output, or the first of several, into a list."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        into.append(output if isinstance(output, Tensor) else output[0])

    return hook
