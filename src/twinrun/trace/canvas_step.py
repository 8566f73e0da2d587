"""One forward of a traced diffusion run: what was open, what was proposed, what was committed, and what was skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
from torch import Tensor

INTS, FLOATS, FLAGS = pa.list_(pa.int64()), pa.list_(pa.float64()), pa.list_(pa.bool_())
SKIPS = pa.struct(
    [
        ("layer", pa.int64()),
        ("compared", INTS),
        ("computed_at", INTS),
        ("changed", FLAGS),
        ("active", FLAGS),
        ("mean", FLOATS),
        ("low", FLOATS),
        ("importance", FLOATS),
        ("token_layers", pa.int64()),
        ("skipped_token_layers", pa.int64()),
    ]
)
COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("block", pa.int64()),
        ("block_step", pa.int64()),
        ("full", pa.bool_()),
        ("seconds", pa.float64()),
        ("positions", INTS),
        ("ids", INTS),
        ("open", FLAGS),
        ("tokens", INTS),
        ("confidence", FLOATS),
        ("committed", FLAGS),
        ("strays", pa.list_(INTS)),
        ("computed", INTS),
        ("widths", INTS),
        ("handed", INTS),
        ("deep", INTS),
        ("read", INTS),
        ("keys", pa.int64()),
        ("tokens_in_row", pa.int64()),
        ("skips", SKIPS),
    ]
)
STATE = "state."
"""Prefix of the tensors that a replay needs."""


@dataclass(slots=True, kw_only=True)
class Skips:
    """What a skip policy saw and decided; lists run over the block's positions.

    Attributes:
        layer: the first layer that some tokens did not enter; None if all entered every layer.
        compared: absolute position of the remembered hidden states that each token's were compared with.
        computed_at: step of the block in which those were computed.
        changed: whether another token stood there then.
        active: whether the token went through all layers.
        mean, low: mean and lowest cosine over the compared layers; None where none was taken.
        importance: what a ranking policy ranks by.
        token_layers: tokens times layers of this step; skipped_token_layers: of these, left out.
    """

    layer: int | None
    compared: list[int]
    computed_at: list[int]
    changed: list[bool]
    active: list[bool]
    mean: list[float | None] | None
    low: list[float | None] | None
    importance: list[float | None] | None
    token_layers: int
    skipped_token_layers: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name; the lists are not copied."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(slots=True, kw_only=True)
class CanvasStep:
    """One forward. Lists run over the positions of the block unless said otherwise.

    Attributes:
        step: number of the forward in the run; block: number of the block; block_step: number inside it; all from 0.
        full: whether the whole canvas was computed.
        seconds: of this step.
        positions: absolute positions of the block.
        ids: tokens of the block in front of the step.
        open: whether the position was still to be decided.
        tokens: newest proposal; confidence: its probability, None where nothing was proposed.
        committed: what this step committed.
        strays: `[position, before, after]` of every token outside `committed` that the step changed.
        computed: absolute positions of the tokens that the forward was fed.
        widths: tokens that entered each layer.
        handed: positions whose rotary tables the first layer was handed, one a computed token.
        deep: the same of the last layer.
        read: positions whose hidden states the head was given as new.
        keys: slots that each query may attend to.
        tokens_in_row: tokens of the row that take part in the step, padding not counted.
        skips: None without a skip policy, or in a full forward.
        cosines: `[layers, positions]` float32, cosine of each compared layer, or None.
        state: tensors by name from which the step can be run again, or None.
    """

    step: int
    block: int
    block_step: int
    full: bool
    seconds: float
    positions: list[int]
    ids: list[int]
    open: list[bool]
    tokens: list[int]
    confidence: list[float | None]
    committed: list[bool]
    strays: list[list[int]]
    computed: list[int]
    widths: list[int]
    handed: list[int]
    deep: list[int]
    read: list[int]
    keys: int
    tokens_in_row: int
    skips: Skips | None
    cosines: Tensor | None = field(default=None, repr=False)
    state: dict[str, Tensor] | None = field(default=None, repr=False)

    @property
    def commits(self) -> dict[int, int]:
        """Position -> token of what this step committed."""
        picked = zip(self.positions, self.tokens, self.committed, strict=True)
        return {position: token for position, token, chosen in picked if chosen}

    @property
    def sure(self) -> dict[int, float]:
        """Open position -> confidence of its proposal, where there is one."""
        seen = zip(self.positions, self.confidence, self.open, strict=True)
        return {position: value for position, value, is_open in seen if is_open and value is not None}

    @property
    def skipped(self) -> list[int]:
        """Positions that did not go through all layers."""
        if self.skips is None:
            return []
        return [p for p, active in zip(self.positions, self.skips.active, strict=True) if not active]

    @property
    def columns(self) -> pa.Schema:
        """Names and types of what `to_json` returns."""
        return COLUMNS

    def tensors(self) -> dict[str, Tensor]:
        """Cosines and the saved state, where they were kept."""
        found = {} if self.cosines is None else {"cosines": self.cosines}
        return found | {STATE + name: tensor for name, tensor in (self.state or {}).items()}

    def set_tensors(self, found: dict[str, Tensor]) -> None:
        """Take the tensors that were read back."""
        self.cosines = found.get("cosines")
        saved = {k.removeprefix(STATE): tensor for k, tensor in found.items() if k.startswith(STATE)}
        self.state = saved or None

    def state_bytes(self) -> int:
        """Bytes of the saved state."""
        return sum(tensor.nbytes for tensor in (self.state or {}).values())

    def drop_states(self) -> None:
        """Forget the saved state."""
        self.state = None

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors as plain JSON types."""
        plain = {name: getattr(self, name) for name in COLUMNS.names if name != "skips"}
        return {**plain, "skips": None if self.skips is None else self.skips.to_json()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> CanvasStep:
        """Read what `to_json` wrote."""
        plain = {name: found[name] for name in COLUMNS.names}
        if plain["skips"] is not None:
            plain["skips"] = Skips(**{f.name: plain["skips"][f.name] for f in fields(Skips)})
        return cls(**plain)
