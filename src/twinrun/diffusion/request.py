"""Checks of one request to generate, and the commit rule that follows from it."""

from __future__ import annotations

from twinrun.diffusion.commit import Commit, Quota
from twinrun.diffusion.settings import DiffusionSettings
from twinrun.errors import ConfigError


def check_length(max_new_tokens: int, block_length: int) -> int:
    """Return the number of blocks.

    Raises:
        ConfigError: fewer than one token, or no whole number of blocks.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    blocks, rest = divmod(max_new_tokens, block_length)
    if rest:
        up = (blocks + 1) * block_length
        raise ConfigError(
            f"max_new_tokens={max_new_tokens} is no multiple of block_length={block_length}; use {up}, "
            f"or a block_length that divides it"
        )
    return blocks


def rule_for(settings: DiffusionSettings, blocks: int, steps: int | None) -> Commit:
    """Return the commit rule of a run in which `steps` forwards are to fill all blocks; None asks for no number.

    Raises:
        ConfigError: steps below 1, fewer than blocks, not divisible by them, or a rule that takes no number of steps.
    """
    if steps is None:
        return settings.commit
    if settings.commit != Quota():
        raise ConfigError(
            f"steps={steps} together with commit={settings.commit}: that rule decides the number of steps; "
            "leave one of them out"
        )
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}; each block takes at least one")
    if steps < blocks or steps % blocks:
        near = max(1, round(steps / blocks)) * blocks
        raise ConfigError(
            f"steps={steps} over {blocks} blocks: every block takes the same whole number of steps; "
            f"use {near}, or another block_length"
        )
    return Quota(steps // blocks)
