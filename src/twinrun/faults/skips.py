"""Faults of token skip, as public code has them: what is compared, what is rotated, what the head reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from twinrun.diffusion.active import Active
from twinrun.diffusion.diffusion import Diffusion
from twinrun.diffusion.skipped import Skipping
from twinrun.diffusion.wiring import Wiring
from twinrun.faults.canvas_fault import canvas_fault
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute
from twinrun.models.parts import Parts, Rotary, Slots

CODE = "https://github.com/HanHoupu/fastllmskip"
skip_fault = partial(canvas_fault, thread=(CODE,), runners=("diffusion:dual+skip",))


def compares_rows() -> Fault:
    """Row j of the canvas against row j of the block."""
    return skip_fault(
        name="skip-compares-rows",
        summary="the first cached step of a block compares hidden states row by row: position 0 with the block's first",
        where="skip decision of the first cached step of a block",
        site=Site("skip decision"),
        needs=("a token skip", "two steps in a block"),
        plant=rewired(RowAgainstRow),
    )


def local_positions() -> Fault:
    """Rotary positions counted from the block's beginning."""
    return skip_fault(
        name="skip-block-local-positions",
        summary="tokens that go on are rotated by their place in the block, not by their position",
        where="rotary positions behind the cut",
        site=Site("positions"),
        needs=("a token skip", "a step that skips some tokens and computes others"),
        plant=rewired(BlockLocal),
    )


def early_states_to_head() -> Fault:
    """Hidden states of an early layer through the head."""
    return skip_fault(
        name="skip-early-states-to-head",
        summary="skipped tokens show the hidden states of layer k through norm and head, and compete with them",
        where="what the head reads of skipped tokens",
        site=Site("head input"),
        needs=("a token skip", "a step that skips"),
        plant=rewired(EarlyStates),
    )


def keys_rotated_twice() -> Fault:
    """Rotated keys in a cache that rotates what it is given."""
    return skip_fault(
        name="skip-keys-rotated-twice",
        summary="keys that are rotated already are stored where keys are rotated once more",
        where="keys of the first layer behind the cut",
        site=Site("keys"),
        needs=("a token skip", "a step that skips some tokens and computes others"),
        plant=rewired(RotatedTwice),
    )


def first_row_decides() -> Fault:
    """One decision for a batch."""
    return skip_fault(
        name="skip-first-row-decides",
        summary="the decision of row 0 is taken for every row of a batch",
        where="skip decision of the second row",
        site=Site("skip decision"),
        needs=("a token skip", "two rows"),
        runners=("diffusion:dual+skip, batch",),
        plant=rewired(FirstRow),
    )


class RowAgainstRow(Wiring):
    """The first rows of the canvas stand in for the block's."""

    def block_of(self, canvas: Tensor, columns: slice) -> Tensor:
        """Take as many rows from the front."""
        return canvas[:, : columns.stop - columns.start]


class BlockLocal(Wiring):
    """Positions count from the block's first token."""

    def rotary_of(self, parts: Parts, rotary: Rotary, active: Active) -> Rotary:
        """Rotate by the place in the block."""
        return parts.rotary(rotary[0], active.picks)


class EarlyStates(Wiring):
    """A skipped token's last word is the input of the first layer that it left out."""

    def to_head(self, last: Tensor, entering: Tensor, computed: Tensor) -> tuple[Tensor, Tensor]:
        """Merge final and early states, and call all of them new."""
        return torch.where(computed[..., None], last, entering), torch.ones_like(computed)


class RotatedTwice(Wiring):
    """Keys go through a second rotation on their way to the slots."""

    def keys_of(self, slots: Slots, rotary: Rotary) -> Slots:
        """Rotate what is written once more."""
        return _Rotating(slots, rotary)


class FirstRow(Wiring):
    """Every row follows row 0."""

    def rows_of(self, keep: Tensor) -> Tensor:
        """Copy the first row's choice."""
        return keep[:1].expand_as(keep)


class AsPublished(RowAgainstRow, BlockLocal, EarlyStates):
    """The first public version: three of the faults together."""


class _Rotating(Slots):
    """The same slots, whose keys are rotated when they are written."""

    def __init__(self, slots: Slots, rotary: Rotary) -> None:
        self.__dict__.update(vars(slots))
        self._rotary = rotary

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        cos, sin = (t[:, None].to(keys.dtype) for t in self._rotary)
        half = keys.shape[-1] // 2
        turned = torch.cat([-keys[..., half:], keys[..., :half]], dim=-1)
        return super().update(keys * cos + turned * sin, values, layer_idx)


class _Rewired:
    """A skip policy with another wiring; it answers to everything else as the policy does."""

    def __init__(self, policy: Any, wiring: Wiring) -> None:
        self._policy, self._wiring = policy, wiring

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def __repr__(self) -> str:
        return repr(self._policy)

    def start(self, parts: Parts) -> Skipping:
        found: Skipping = self._policy.start(parts, self._wiring)
        return found


def rewired(wiring: type[Wiring]) -> Callable[[Diffusion], AbstractContextManager[None]]:
    """Plant another wiring in a runner's skip policy."""

    @contextmanager
    def plant(runner: Diffusion) -> Iterator[None]:
        policy: Any = _Rewired(runner.settings.skip, wiring())
        with attribute(runner, "settings", replace(runner.settings, skip=policy)):
            yield

    return plant
