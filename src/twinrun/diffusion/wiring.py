"""Where the tensors of a skipped step come from and go to: one method for each choice that public code got wrong.

Faults are planted here, as a subclass or a patched method, and nowhere else.
"""

from __future__ import annotations

from torch import Tensor

from twinrun.diffusion.active import Active
from twinrun.models.parts import Parts, Rotary, Slots


class Wiring:
    """The right wiring of a block forward in which tokens are left out; without state."""

    def block_of(self, canvas: Tensor, columns: slice) -> Tensor:
        """The block's part of a tensor over the canvas, `[rows, width, ...]`, after a full forward: by position."""
        return canvas[:, columns]

    def rotary_of(self, parts: Parts, rotary: Rotary, active: Active) -> Rotary:
        """Rotary cosines and sines of the tokens that go on, out of those of the block's absolute positions."""
        cos, sin = rotary
        return active.take(cos), active.take(sin)

    def keys_of(self, slots: Slots, rotary: Rotary) -> Slots:
        """Where the layers behind a cut write keys, which their attention has rotated by `rotary`, once."""
        return slots

    def rows_of(self, keep: Tensor) -> Tensor:
        """The tokens that go on, `[rows, tokens]`: each row has its own."""
        return keep

    def to_head(self, last: Tensor, entering: Tensor, computed: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states that the head reads, `[rows, tokens, width]`, and for which of the tokens it does.

        Args:
            last: of each token the final hidden state the last time it went through all layers.
            entering: the inputs of the first cut in this step. No layer behind it has seen them, so they are no
                token's final state.
            computed: `[rows, tokens]` booleans, those that went through in this step.
        """
        return last, computed
