"""A bidirectional model run piece by piece: any tokens, at any positions, through any of its layers.

Cached diffusion decoding computes some positions of a canvas and reuses the keys and values of the others. The
model's own modules do all the arithmetic; what is added here is where keys and values are written (`Slots`) and
which rows go in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from twinrun.errors import UnsupportedModelError
from twinrun.models.lean import LeanLayer, Tables, tables
from twinrun.models.model import Model
from twinrun.models.positions import as_mask
from twinrun.models.slots import At as At
from twinrun.models.slots import Slots as Slots

Rotary = tuple[Tensor, Tensor]


class Parts:
    """The pieces of one bidirectional model, called the way its own forward calls them."""

    def __init__(self, model: Model) -> None:
        """Find the pieces.

        Raises:
            UnsupportedModelError: a model whose body has no table of tokens or no rotary positions, or whose
                logits are not head(norm(hidden)).
        """
        layout = model.layout
        self.model = model
        for name in ("embed_tokens", "rotary_emb"):
            if not hasattr(layout.body, name):
                raise UnsupportedModelError(
                    f"{model.name} cannot be run piece by piece: its body has no {name}; Llama-like models have"
                )
        if layout.norm is None or layout.head is None or layout.tail is None or not layout.streams:
            raise UnsupportedModelError(
                f"{model.name} cannot be run piece by piece: {layout.why_not or 'it has no final norm'}"
            )
        self._body: Any = layout.body
        self._norm, self._head, self._tail = layout.norm, layout.head, layout.tail
        self._layers = layout.layers
        self._lean = [LeanLayer(layer) for layer in self._layers]
        self._tables: list[tuple[Rotary, Tables]] = []

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states `[rows, tokens, width]` in front of the first layer."""
        found: Tensor = self._body.embed_tokens(ids)
        return found

    def rotary(self, hidden: Tensor, positions: Tensor) -> Rotary:
        """Cosines and sines `[rows, tokens, head_dim]` of absolute positions `[rows, tokens]`."""
        for lean in self._lean:
            lean.look()
        found: Rotary = self._body.rotary_emb(hidden, position_ids=positions)
        return found

    def layer(
        self, index: int, hidden: Tensor, rotary: Rotary, mask: Tensor | None, slots: Slots | None
    ) -> Tensor:
        """One layer on `[rows, tokens, width]`.

        Args:
            index: from 0.
            hidden: its input.
            rotary: of the same tokens.
            mask: `[rows, 1, tokens or 1, keys]` booleans, True where a query may look; None is everywhere.
            slots: keys and values to write to (at `slots.at`) and to attend to; None attends to these tokens alone.
        """
        if mask is not None:
            mask = as_mask(self.model, mask.expand(-1, -1, hidden.shape[1], -1))
        given = {
            "attention_mask": mask, "position_embeddings": rotary, "past_key_values": slots,
            "use_cache": slots is not None, "is_causal": False,
        }  # fmt: skip
        lean = self._lean[index](hidden, self._turn(rotary), mask, slots)
        if lean is not None:
            self._lean[index].show(hidden, given)
            return lean
        out = self._layers[index](hidden, **given)
        found: Tensor = out if isinstance(out, Tensor) else out[0]
        return found

    def _turn(self, rotary: Rotary) -> Tables:
        """Tables of a step, made for the first of its layers; the last two are kept: a block's, and of some of it."""
        for known, found in self._tables:
            if known is rotary:
                return found
        found = tables(rotary)
        self._tables = [(rotary, found), *self._tables[:1]]
        return found

    def write(self, index: int, hidden: Tensor, rotary: Rotary, slots: Slots) -> bool:
        """Write the keys and values of a layer's input to `slots.at` and compute nothing else of the layer.

        Returns:
            Whether it was done: only layers of Llama and Qwen2 are known well enough.
        """
        layer: Any = self._layers[index]
        if type(layer) not in (LlamaDecoderLayer, Qwen2DecoderLayer):
            return False
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        keys, values = (
            projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.k_proj, attention.v_proj)
        )
        cos, sin = (part[:, None] for part in rotary)
        low, high = keys.chunk(2, dim=-1)
        turned = torch.cat((-high, low), dim=-1)
        slots.update(keys * cos + turned * sin, values, attention.layer_idx)
        return True

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of `[rows, tokens, width]` behind the last layer: norm, head, and what follows it."""
        rows, tokens, width = hidden.shape
        normed = self.normed(hidden).reshape(-1, width)
        return self._tail(self._head(normed)).view(rows, tokens, -1)

    def normed(self, hidden: Tensor) -> Tensor:
        """Hidden states as the head takes them, same shape."""
        found: Tensor = self._norm(hidden)
        return found

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        slots: Slots | None = None,
        at: At | None = None,
    ) -> Tensor:
        """Hidden states behind the last layer, `[rows, tokens, width]`, of tokens at absolute positions.

        Args:
            ids: `[rows, tokens]` int64.
            positions: `[rows, tokens]` absolute positions, padding not counted.
            mask: as in `layer`.
            slots: where keys and values go and come from.
            at: slots of these tokens.

        Example:
            >>> m = load("builtin:diffusion")
            >>> ids = torch.tensor([[5, 6, 7]])
            >>> with torch.inference_mode():
            ...     Parts(m).forward(ids, torch.arange(3)[None]).shape
            torch.Size([1, 3, 128])
        """
        if slots is not None and at is not None:
            slots.at = at
        hidden = self.embed(ids)
        rotary = self.rotary(hidden, positions)
        for index in range(self.num_layers):
            hidden = self.layer(index, hidden, rotary, mask, slots)
        return hidden
