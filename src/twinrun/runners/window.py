"""What "the last W tokens" means for a model, and the masks that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twinrun.errors import ConfigError
from twinrun.models.model import Model
from twinrun.models.positions import Positions, as_mask, layer_windows, positions_of


@dataclass(frozen=True, slots=True)
class Window:
    """The window of each layer of one model, checked.

    With learned positions a window is a number of tokens that are kept; positions end with the model's table. With
    rotary positions it is sliding-window attention (Beltagy et al. 2020, arXiv:2004.05150, section 3.1; as in
    Mistral, arXiv:2310.06825, section 2): a query sees its own token and the W - 1 before it, and positions count on.

    Attributes:
        tokens: the window asked for; None where only the model's own windows apply.
        layers: what each layer sees, in tokens; None for all.
        own: the same by the model's own config.
        positions: where the model takes positions from.
    """

    model: Model
    tokens: int | None
    layers: tuple[int | None, ...]
    own: tuple[int | None, ...]
    positions: Positions

    @classmethod
    def of(cls, model: Model, tokens: int | None, *, who: str) -> Window:
        """Build the window of `tokens` on a model; None takes the model's own.

        Raises:
            ConfigError: a window below 1 or beyond the table of positions, or none where the model has none of its own.
            UnsupportedModelError: a model whose positions or layers do not allow one.
        """
        positions, own = positions_of(model), layer_windows(model)
        if positions.kind == "learned":
            tokens = positions.rows if tokens is None else tokens
        elif tokens is None and not any(own):
            raise ConfigError(f"{model.name} has no window of its own; give {who} one, window=TOKENS")
        if tokens is not None and tokens < 1:
            raise ConfigError(f"window must be at least 1 token, got {tokens}")
        if positions.kind == "learned" and tokens is not None and tokens > (positions.rows or 0):
            raise ConfigError(
                f"window={tokens} exceeds the table of positions of {model.name} ({positions.rows} rows); "
                "give a smaller one"
            )
        layers = tuple(min(w or tokens or 0, tokens or w or 0) or None for w in own)
        return cls(model, tokens, layers, tuple(own), positions)

    @property
    def smallest(self) -> int:
        """Longest text, in tokens, that no layer's window cuts."""
        return min(w for w in self.layers if w is not None)

    @property
    def is_own(self) -> bool:
        """Whether the model's own masks already say this window."""
        return self.layers == self.own

    @property
    def max_context(self) -> int | None:
        """Longest text, in tokens; None where it may go on without end."""
        return None if self.positions.kind == "learned" else self.positions.rows

    def mask(self, queries: Tensor, keys: dict[int | None, Tensor], real: Tensor | None) -> Any:
        """Return the mask of one forward in the form that the model takes.

        Args:
            queries: `[queries]`, index of each query in the text, padding counted.
            keys: for each window among `layers`, `[keys]`: index of the token in each slot that attention will see.
            real: `[rows, tokens]`, 0 for padding; None if nothing is padded.

        Returns:
            `[rows or 1, 1, queries, keys]`, or one for each kind of layer where layers differ.
        """
        found = {w: as_mask(self.model, _visible(queries, at, w, real)) for w, at in keys.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        kinds = self.model.config.layer_types
        return {kind: found[w] for kind, w in zip(kinds, self.layers, strict=True)}


def _visible(queries: Tensor, keys: Tensor, window: int | None, real: Tensor | None) -> Tensor:
    distance = queries[:, None] - keys[None]
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    seen = seen[None, None]
    return seen if real is None else seen & real[:, None, None, keys].bool()


def causal(length: int, window: Window) -> Any:
    """Return the mask of one forward over a whole unpadded text of `length` tokens under a window."""
    at = torch.arange(length, device=window.model.device)
    return window.mask(at, dict.fromkeys(window.layers, at), None)
