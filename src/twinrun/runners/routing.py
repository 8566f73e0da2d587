"""Record which experts the routers of a mixture-of-experts model choose, so that a router tie is no bug."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.models.model import Model
from twinrun.records.scores import Routes


class RouteRecorder:
    """Collects router outputs of each forward. On a dense model it does nothing."""

    def __init__(self, num_routers: int) -> None:
        self._num_routers = num_routers
        self._now: list[tuple[Tensor, Tensor]] = []
        self.forwards: list[tuple[Tensor, Tensor]] = []
        self._is_ragged = False

    @classmethod
    @contextmanager
    def on(cls, model: Model) -> Iterator[RouteRecorder]:
        """Hook the routers of `model` for the length of the block."""
        names = () if model.is_compiled else model.layout.routers
        recorder = cls(len(names))
        with ExitStack() as undo:
            for name in names:
                undo.callback(model.core.get_submodule(name).register_forward_hook(recorder._hook).remove)
            yield recorder

    def _hook(self, _module: nn.Module, _args: Any, output: Any) -> None:
        ids = next(t for t in output if not t.is_floating_point())
        logits = next(t for t in output if t.is_floating_point())
        self._now.append((ids.reshape(-1, ids.shape[-1]), logits.reshape(-1, logits.shape[-1]).float()))

    def take(self) -> list[Tensor]:
        """Hand over what routers returned in the forward that is under way: ids and logits of each in turn."""
        taken = [tensor for pair in self._now for tensor in pair]
        self._now.clear()
        return taken

    def put(self, taken: list[Tensor]) -> None:
        """Take what `take` handed over, as if the routers had returned it now."""
        self._now = list(zip(taken[::2], taken[1::2], strict=True))

    @property
    def is_on(self) -> bool:
        """Whether there is anything to record."""
        return self._num_routers > 0

    def take_over(self, other: RouteRecorder, count: int) -> None:
        """Begin with the routes of the first `count` tokens of another recording."""
        if other.forwards:
            ids, logits = (torch.cat([f[i] for f in other.forwards], dim=2)[:, :, :count] for i in (0, 1))
            self.forwards.insert(0, (ids, logits))

    def end_forward(self, shape: torch.Size) -> None:
        """Close one forward on `[rows, tokens]`: stack its routers to `[layers, rows, tokens, k]`."""
        rows, tokens = shape
        if any(
            len(ids) != rows * tokens for ids, _ in self._now
        ):  # a pruned prefill: layers saw other tokens
            self._is_ragged = True
        elif len(self._now) == self._num_routers and self._num_routers:
            ids, logits = (torch.stack(column) for column in zip(*self._now, strict=True))
            self.forwards.append(
                (ids.view(len(ids), rows, tokens, -1), logits.view(len(ids), rows, tokens, -1))
            )
        self._now.clear()

    def of_row(self, row: int, length: int, num_scored: int) -> Routes | None:
        """Routes of one row over forwards that extend each other: its last `num_scored` prefixes.

        None also where layers saw unequal numbers of tokens, so that their choices cannot be laid side by side.
        """
        if not self.forwards or self._is_ragged:
            return None
        ids = torch.cat([f[0][:, row] for f in self.forwards], dim=1)[:, -length:].cpu()
        logits = torch.cat([f[1][:, row] for f in self.forwards], dim=1)[:, -length:].cpu()
        ends = range(length - num_scored + 1, length + 1)
        return Routes(experts=[ids[:, :end] for end in ends], logits=[logits[:, :end] for end in ends])

    def of_prefixes(self, ends: Sequence[int]) -> Routes | None:
        """Routes of forwards on one row that each start afresh: for a prefix those of the shortest one over it."""
        if not self.forwards:
            return None
        found = [
            min((f for f in self.forwards if f[0].shape[2] >= e), key=lambda f: f[0].shape[2]) for e in ends
        ]
        return Routes(
            experts=[f[0][:, 0, :e].cpu() for f, e in zip(found, ends, strict=True)],
            logits=[f[1][:, 0, :e].cpu() for f, e in zip(found, ends, strict=True)],
        )
