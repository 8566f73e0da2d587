"""Everything that one step depends on, as plain tensors by name, and the way back.

Names: `canvas.*` (tokens, positions, mask, open, start), `block` (columns and number of the step inside it),
`rows` (which prompts of the batch), `board.*` (newest proposals), `keys.N` and `values.N` (slots of layer N),
`forward.*` (what a skip policy remembers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from twinrun.diffusion.canvas import Canvas
from twinrun.diffusion.feed import Board
from twinrun.diffusion.forward import BlockForward
from twinrun.diffusion.probe import Before
from twinrun.errors import ConfigError
from twinrun.models.parts import Slots

State = dict[str, Tensor]


def save_state(before: Before) -> State:
    """Copy a state to the host, all rows of the canvas.

    Cost: a copy of all keys and values.
    """
    canvas, board, slots = before.canvas, before.board, before.slots
    found = {
        "canvas.ids": canvas.ids,
        "canvas.positions": canvas.positions,
        "canvas.open": canvas.open,
        "canvas.start": torch.tensor(canvas.start),
        "rows": torch.tensor(list(before.rows)),
        "block": torch.tensor([before.columns.start, before.columns.stop, before.step]),
        "board.tokens": board.tokens,
        "board.confidence": board.confidence,
        "board.chosen": board.chosen,
    }
    if canvas.mask is not None:
        found["canvas.mask"] = canvas.mask
    if slots is not None:
        for layer in range(slots.layers):
            found |= {f"keys.{layer}": slots.keys(layer), f"values.{layer}": slots.values(layer)}
    found |= {f"forward.{name}": tensor for name, tensor in _remembered(before.forward).items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}


def state_of_canvas(
    ids: list[int], *, start: int, open: list[bool], block: list[int], block_step: int, row: int = 0
) -> State:
    """State in front of a full forward of one unpadded row: the canvas is all there is to it."""
    canvas = torch.tensor([ids])
    chosen = torch.zeros(1, block[1] - block[0], dtype=torch.bool)
    return {
        "canvas.ids": canvas,
        "canvas.positions": torch.arange(len(ids))[None],
        "canvas.open": torch.tensor([open]),
        "canvas.start": torch.tensor(start),
        "rows": torch.tensor([row]),
        "block": torch.tensor([*block, block_step]),
        "board.tokens": canvas[:, block[0] : block[1]].clone(),
        "board.confidence": torch.full(chosen.shape, torch.nan, dtype=torch.float64),
        "board.chosen": chosen,
    }


def canvas_of(state: Mapping[str, Tensor], device: torch.device) -> Canvas:
    """The canvas of a state, in memory of its own."""
    own = {name: state[f"canvas.{name}"].clone().to(device) for name in ("ids", "positions", "open")}
    mask = state.get("canvas.mask")
    return Canvas(**own, mask=None if mask is None else mask.to(device), start=int(state["canvas.start"]))


def board_of(state: Mapping[str, Tensor], device: torch.device) -> Board:
    """The newest proposals of a state."""
    return Board(*(state[f"board.{name}"].clone().to(device) for name in ("tokens", "confidence", "chosen")))


def slots_of(state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> Slots | None:
    """Keys and values of a state; None if it has none."""
    layers = sum(name.startswith("keys.") for name in state)
    if not layers:
        return None
    width = state["keys.0"].shape[2]
    slots = Slots(width)
    slots.at = slice(0, width)
    for layer in range(layers):
        keys, values = (state[f"{name}.{layer}"].to(device, dtype) for name in ("keys", "values"))
        slots.update(keys, values, layer)
    return slots


def recall(forward: BlockForward, state: Mapping[str, Tensor], device: torch.device) -> None:
    """Give the strategy of cached steps what it had remembered.

    Raises:
        ConfigError: the state is of another kind of strategy, or of one with other cuts.
    """
    if not forward.wants_layers:
        return
    saved = {k.removeprefix("forward."): t.to(device) for k, t in state.items() if k.startswith("forward.")}
    watched: Mapping[int, Any] = getattr(forward, "_watched", {})
    cuts = {int(name.rpartition(".")[2]) for name in saved if "." in name}
    if not set(watched) <= cuts:
        raise ConfigError(
            f"the saved state remembers layers {sorted(cuts) or 'none'}, this policy compares at "
            f"{sorted(watched) or 'none'}; change thresholds, not layer_k, or replay with skip=None"
        )
    for name, tensor in saved.items():
        holder, _, key = name.partition(".")
        if key:
            getattr(forward, holder)[int(key)] = tensor.clone()
        else:
            setattr(forward, holder, tensor.clone())


def _remembered(forward: BlockForward) -> State:
    """Tensors among the attributes of a strategy, and those in its dictionaries by layer."""
    found: State = {}
    for name, value in vars(forward).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": t for key, t in value.items() if isinstance(t, Tensor)}
    return found
