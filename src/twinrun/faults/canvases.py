"""Faults of a canvas: what is written to it, where, and by which rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.chooser import Chooser
from twinrun.diffusion.commit import Factor
from twinrun.diffusion.diffusion import Diffusion
from twinrun.faults.canvas_fault import canvas_fault
from twinrun.faults.fault import Fault, Site
from twinrun.faults.parts import attribute

FAST_DLLM = "https://github.com/NVlabs/Fast-dLLM"


def mask_id_committed() -> Fault:
    """The mask may be proposed."""
    return canvas_fault(
        name="mask-id-committed",
        summary="the mask id is not banned: where it is the likeliest token it is committed, and stays in the output",
        thread=(f"{FAST_DLLM}/issues/54", f"{FAST_DLLM}/issues/66"),
        where="a commit of the mask id",
        site=Site("mask id"),
        needs=("a model that finds the mask likely",),
        runners=("diffusion:none", "diffusion:dual"),
        plant=_mask_allowed,
    )


def prompt_mask_overwritten() -> Fault:
    """A mask in the prompt is taken for a place to fill in."""
    return canvas_fault(
        name="prompt-mask-overwritten",
        summary="what is open is read off the ids, so a mask id inside the prompt is filled in",
        thread=("https://github.com/sgl-project/sglang/issues/39499",),
        where="a commit inside the prompt",
        site=Site("prompt"),
        needs=("the mask id inside the prompt",),
        runners=("diffusion:none", "diffusion:dual"),
        plant=_open_by_id,
    )


def factor_off_by_one() -> Fault:
    """The last candidate is never tested."""
    return canvas_fault(
        name="factor-off-by-one",
        summary="factor decoding commits every candidate where only the last of them fails its bound",
        thread=(),
        where="commits of the factor rule, the last two positions of a block at the latest",
        site=Site("commit set"),
        needs=("commit=Factor(f)",),
        runners=("diffusion:none, factor",),
        plant=_last_untested,
    )


def canvas_padding_attended() -> Fault:
    """The mask of a padded batch never reaches attention."""
    return canvas_fault(
        name="canvas-padding-attended",
        summary="rows of a padded batch attend to their padding, because the attention mask is built and not passed on",
        thread=(f"{FAST_DLLM}/issues/39", "https://github.com/ML-GSAI/LLaDA/issues/90"),
        where="attention mask of the first step of a padded row",
        site=Site("mask"),
        needs=("padding",),
        runners=("diffusion:none, batch", "diffusion:dual+skip, batch"),
        plant=_no_mask,
    )


@contextmanager
def _mask_allowed(runner: Diffusion) -> Iterator[None]:
    make = runner._chooser

    def chooser(*args: Any, **kwargs: Any) -> Chooser:
        found, nothing = make(*args, **kwargs), slice(0, 0)
        found.mask_id = cast(int, nothing)  # bans nothing
        return found

    with attribute(runner, "_chooser", chooser):
        yield


@contextmanager
def _open_by_id(runner: Diffusion) -> Iterator[None]:
    make = runner.canvas

    def canvas(prompts: list[list[int]], room: int) -> Canvas:
        found = make(prompts, room)
        found.open = found.ids == runner.mask_id
        return _FromFirstMask(**{name: getattr(found, name) for name in Canvas.__dataclass_fields__})

    with attribute(runner, "canvas", canvas):
        yield


class _FromFirstMask(Canvas):
    """Its first block reaches back to the first mask of any row."""

    def blocks(self, length: int) -> list[slice]:
        first, *later = super().blocks(length)
        begin = int(self.open.any(0).int().argmax())
        return [slice(min(begin, first.start), first.stop), *later]


@contextmanager
def _last_untested(runner: Diffusion) -> Iterator[None]:
    rule = runner.settings.commit
    assert isinstance(rule, Factor)
    with attribute(runner, "settings", replace(runner.settings, commit=_LastUntested(rule.f))):
        yield


@dataclass(frozen=True, slots=True, repr=False)
class _LastUntested(Factor):
    """If all but one candidate pass, all are committed."""

    def __repr__(self) -> str:
        return f"Factor(f={self.f})"

    def choose(self, confidence: Tensor, open: Tensor, *, step: int, size: int) -> Tensor:
        right = Factor.choose(self, confidence, open, step=step, size=size)
        one_left = (open & ~right).sum(1, keepdim=True) == 1
        return torch.where(one_left, open, right)


@contextmanager
def _no_mask(runner: Diffusion) -> Iterator[None]:
    make = runner.canvas

    def canvas(prompts: list[list[int]], room: int) -> Canvas:
        found = make(prompts, room)
        found.mask = None
        return found

    with attribute(runner, "canvas", canvas):
        yield
