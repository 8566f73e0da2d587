"""Diffusion runners that faults are planted in, by name; a batch has a longer prompt beside the one followed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twinrun.diffusion.commit import Factor
from twinrun.diffusion.diffusion import Diffusion
from twinrun.diffusion.skip import TokenSkip
from twinrun.errors import ConfigError, near_names
from twinrun.models.model import Model, Prompt
from twinrun.records.diffusion_run import DiffusionRun

BLOCK, TOKENS, PROMPT = 16, 32, 19
"""Tokens of a block, of the generation area, and of the prompt in the fault suite."""
SKIP = TokenSkip(layer_k=2, threshold=0.999, neighbours=0)


class Beside(Diffusion):
    """Decodes a prompt in a batch, as the second row, behind a longer one: it is padded, and not row 0."""

    row = 1

    @property
    def name(self) -> str:
        """How records call this runner."""
        return f"{super().name}, batch"

    def generate(self, prompt: Prompt | Any, max_new_tokens: int = 128, **options: Any) -> DiffusionRun:
        """Decode both; the prompt's row is the second."""
        own = self.encode(prompt, new_tokens=max_new_tokens)
        other = [*reversed(own), *own[:8]]
        return super().generate([other, own], max_new_tokens, **options)


class ByFactor(Diffusion):
    """Commits by factor; the name says so, because the rule is what is on trial."""

    @property
    def name(self) -> str:
        """How records call this runner."""
        return f"{super().name}, factor"


CANVAS_RUNNERS: dict[str, Callable[[Model], Diffusion]] = {
    "diffusion:none": partial(Diffusion, block_length=BLOCK),
    "diffusion:none, factor": partial(ByFactor, block_length=BLOCK, commit=Factor(1.0)),
    "diffusion:dual": partial(Diffusion, block_length=BLOCK, cache="dual"),
    "diffusion:dual+skip": partial(Diffusion, block_length=BLOCK, cache="dual", skip=SKIP),
    "diffusion:none, batch": partial(Beside, block_length=BLOCK),
    "diffusion:dual+skip, batch": partial(Beside, block_length=BLOCK, cache="dual", skip=SKIP),
}
"""How each is built. The plain side is the first, with the same commit rule."""


def build_canvas_runner(name: str, model: Model) -> Diffusion:
    """Build the runner called `name`.

    Raises:
        ConfigError: there is none; names the nearest ones.
    """
    if name not in CANVAS_RUNNERS:
        raise ConfigError(f"no diffusion runner named {name!r}.{near_names(name, CANVAS_RUNNERS)}")
    return CANVAS_RUNNERS[name](model)


def plain_side(runner: Diffusion, model: Model) -> Diffusion:
    """The reference: a full forward in every step, the same blocks and commit rule, one prompt alone."""
    settings = runner.settings
    return Diffusion(model, block_length=settings.block_length, commit=settings.commit)


def suite_prompt(model: Model) -> list[int]:
    """Token ids of the suite's prompt; one of them is the mask id, which is text there."""
    mask = model.mask_id
    ids = [5 + (37 * i) % (model.vocab_size - 16) for i in range(PROMPT)]
    ids[7] = ids[7] if mask is None else mask
    return ids
