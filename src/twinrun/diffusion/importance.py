"""Importance-ranked skip: a fixed share of a block's tokens goes on, those that move and those that are sure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from twinrun.diffusion.rule import Decision, Seen, check_refresh, is_refresh
from twinrun.diffusion.skipped import Skipping
from twinrun.diffusion.wiring import Wiring
from twinrun.errors import ConfigError
from twinrun.models.parts import Parts

SURE_BONUS, CHANGED_BONUS = 2.0, 4.0
"""Added to the two surest masked tokens (as published) and to a token that has changed; importance is at most 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceSkip:
    r"""Let only the most important share of a block's tokens go on, a smaller share the deeper.

    Importance `I = alpha * confidence + (1 - alpha) * d`, where `d = mean|h - h'| / (|h'|_2 / sqrt(width) + 1e-6)`
    divided by `max(1, max d)` of the row, `h` the hidden state at the cut and `h'` that of the same position when it
    last passed the cut; confidence is that of the last proposal, 0 once committed. The two surest masked tokens
    always go on.

    Source: ES-dLLM, ICLR 2026, arXiv:2603.10088, and the authors' code (indicator HiddenState).
    Differs from the authors' code: a cut lies in front of the layer that its share begins with, theirs behind it; a
    token whose id has changed always goes on, theirs nearly always; room for it is made in each row, theirs in the
    longest; the whole canvas is computed at each block's beginning and by the cache's own `refresh_every`, theirs by
    a count of steps over all blocks; ends of text are not delayed.

    Attributes:
        schedule: pairs (share of the block's tokens, share of the layers from which it holds), shares falling from
            1, depths rising from 0.
        alpha: weight of confidence, 0 to 1.
        refresh_every: every so many steps of a block all its tokens are computed (published: 4 to 16); None is
            never, 1 is always.

    Raises:
        ConfigError: a value outside its range.

    Example:
        >>> ImportanceSkip().watched(32)
        {4: (4,), 8: (8,)}
    """

    schedule: tuple[tuple[float, float], ...] = ((1.0, 0.0), (0.5, 0.125), (0.25, 0.25))
    alpha: float = 0.5
    refresh_every: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is outside its range."""
        shares, depths = [s for s, _ in self.schedule], [d for _, d in self.schedule]
        if not self.schedule or self.schedule[0] != (1.0, 0.0):
            raise ConfigError(f"schedule={self.schedule} must begin with (1.0, 0.0), all tokens from layer 0")
        if shares != sorted(shares, reverse=True) or shares[-1] <= 0:
            raise ConfigError(f"schedule={self.schedule}: shares of tokens must fall and stay above 0")
        if depths != sorted(set(depths)) or depths[-1] >= 1:
            raise ConfigError(f"schedule={self.schedule}: shares of layers must rise and stay below 1")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha}; use 0 to 1")
        check_refresh(self.refresh_every)

    @property
    def candidates(self) -> bool:
        """A token that was left out does not compete for a commit (as published)."""
        return False

    @property
    def counts_commits(self) -> bool:
        """Room is made for every token that has changed."""
        return True

    def start(self, parts: Parts, wiring: Wiring | None = None) -> Skipping:
        """Begin a run."""
        return Skipping(parts, self, wiring)

    def watched(self, num_layers: int) -> dict[int, tuple[int, ...]]:
        """A cut in front of the layer that each smaller share begins with; its input is compared."""
        return {cut: (cut,) for cut in sorted(self._shares(num_layers))}

    def skips_at(self, step: int) -> bool:
        """Every step but those of `refresh_every`."""
        return not is_refresh(step, self.refresh_every)

    def choose(self, seen: Seen) -> Decision:
        """Rank the tokens of each row and keep the share of this depth."""
        now, then = seen.now[-1].float(), seen.then[-1].float()
        size = then.norm(dim=-1) / math.sqrt(then.shape[-1]) + 1e-6
        moved = ((now - then).abs().mean(-1) / size).masked_fill(~seen.real, 0)
        moved = moved / moved.amax(1, keepdim=True).clamp(min=1)
        assert seen.confidence is not None
        confidence = seen.confidence.masked_fill(~seen.real, 0)
        importance = self.alpha * confidence + (1 - self.alpha) * moved
        ranked = importance + CHANGED_BONUS * seen.changed
        if self.alpha > 0:
            sure, two = confidence.topk(min(2, confidence.shape[1]), dim=1)
            ranked = ranked.scatter_add(1, two, SURE_BONUS * (sure > 0))
        share = int(self._share(seen) * seen.tokens)
        room = [min(now.shape[1], max(share, commits + 2)) for commits in seen.commits]
        order = ranked.masked_fill(~seen.real, -torch.inf).argsort(dim=1, descending=True, stable=True)
        keep = order.argsort(dim=1) < torch.tensor(room, device=now.device)[:, None]
        return Decision(keep=keep, counts=room, notes={"importance": importance})

    def _shares(self, num_layers: int) -> dict[int, float]:
        """Share of the tokens from each cut on; a later one at the same layer replaces an earlier one."""
        found = {math.ceil(depth * num_layers): share for share, depth in self.schedule}
        return {layer: share for layer, share in found.items() if 0 < layer < num_layers and share < 1}

    def _share(self, seen: Seen) -> float:
        """Share of the tokens behind the cut of `seen`."""
        return self._shares(seen.num_layers)[seen.layer]
