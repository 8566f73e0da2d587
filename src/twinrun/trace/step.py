"""One forward of a traced run: what it was handed, what it computed, and what it said about each scored position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

TOP_K = 5
LEAST = torch.finfo(torch.float32).min
ROW = pa.struct(
    [
        ("position", pa.int64()),
        ("token", pa.int64()),
        ("logprob", pa.float64()),
        ("top_ids", pa.list_(pa.int64())),
        ("top_probs", pa.list_(pa.float64())),
        ("entropy", pa.float64()),
        ("margin", pa.float64()),
    ]
)
COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("seconds", pa.float64()),
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("position_ids", pa.list_(pa.int64())),
        ("cache", pa.list_(pa.int64())),
        ("keys", pa.list_(pa.int64())),
        ("rows", pa.list_(ROW)),
    ]
)


@dataclass(slots=True, kw_only=True)
class Scored:
    """What a run said at one position about the token behind it.

    Attributes:
        position: absolute, from 0; its logits choose the token at `position + 1`.
        token: the token that follows (chosen in a free run, given in a forced one); None after the last.
        logprob: its log-probability, nats, under the raw distribution.
        top_ids, top_probs: the five likeliest tokens.
        entropy: nats.
        margin: log-probability gap of the two likeliest tokens, nats.
    """

    position: int
    token: int | None
    logprob: float | None
    top_ids: list[int]
    top_probs: list[float]
    entropy: float
    margin: float

    @classmethod
    def of(cls, logits: Tensor, positions: Sequence[int], tokens: Sequence[int | None]) -> list[Scored]:
        """Summarise rows of logits `[rows, vocab]` in float32."""
        logp = torch.log_softmax(logits.float(), dim=-1)
        top = logp.topk(min(TOP_K, logp.shape[-1]))
        # NOTE: clamped, because what is ruled out has a log-probability of -Inf, and 0 times that is NaN.
        entropy = -(logp.exp() * logp.clamp_min(LEAST)).sum(-1)
        given = torch.tensor([0 if token is None else token for token in tokens], device=logp.device)
        own = logp.gather(-1, given[:, None])[:, 0]
        columns = (top.values.tolist(), top.indices.tolist(), entropy.tolist(), own.tolist())
        return [
            cls(
                position=position,
                token=token,
                logprob=None if token is None else logprob,
                top_ids=ids,
                top_probs=[math.exp(v) for v in values],
                entropy=nats,
                margin=values[0] - values[1] if len(values) > 1 else 0.0,
            )
            for position, token, values, ids, nats, logprob in zip(positions, tokens, *columns, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain JSON types."""
        return {name: getattr(self, name) for name in Scored.__slots__}


@dataclass(slots=True, kw_only=True)
class TracedStep:
    """One forward.

    Attributes:
        step: number of the forward, from 0.
        seconds: from the end of the step before to the end of this one.
        first, last: absolute positions that the forward ran over.
        position_ids: first and last position id that the model was handed; None if it takes none.
        cache: tokens that each layer's cache holds behind the forward; empty without a cache.
        keys: fewest and most keys that a query of this forward may attend to, over the layers; None if unknown.
        rows: what it said at each scored position.
        hidden: `[rows, layers + 1, 17]` float64 fingerprints of the hidden states (embedding first), or None.
        states: `[rows, layers + 1, width]` hidden states themselves, or None.
    """

    step: int
    seconds: float
    first: int
    last: int
    position_ids: tuple[int, int] | None
    cache: tuple[int, ...]
    keys: tuple[int, int] | None
    rows: list[Scored]
    hidden: Tensor | None = field(default=None, repr=False)
    states: Tensor | None = field(default=None, repr=False)

    @property
    def columns(self) -> pa.Schema:
        """Names and types of what `to_json` returns."""
        return COLUMNS

    def tensors(self) -> dict[str, Tensor]:
        """Fingerprints and hidden states, where they were kept."""
        both = (("hidden", self.hidden), ("states", self.states))
        return {name: tensor for name, tensor in both if tensor is not None}

    def set_tensors(self, found: dict[str, Tensor]) -> None:
        """Take the tensors that were read back."""
        self.hidden, self.states = found.get("hidden"), found.get("states")

    def state_bytes(self) -> int:
        """Bytes of the hidden states."""
        return 0 if self.states is None else self.states.nbytes

    def drop_states(self) -> None:
        """Keep fingerprints only."""
        self.states = None

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors as plain JSON types."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "first": self.first,
            "last": self.last,
            "position_ids": None if self.position_ids is None else list(self.position_ids),
            "cache": list(self.cache),
            "keys": None if self.keys is None else list(self.keys),
            "rows": [row.to_json() for row in self.rows],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TracedStep:
        """Read what `to_json` wrote."""
        return cls(
            step=int(found["step"]),
            seconds=float(found["seconds"]),
            first=int(found["first"]),
            last=int(found["last"]),
            cache=tuple(found["cache"]),
            rows=[Scored(**row) for row in found["rows"]],
            position_ids=_pair(found["position_ids"]),
            keys=_pair(found["keys"]),
        )


def _pair(found: Any) -> tuple[int, int] | None:
    return None if found is None else (int(found[0]), int(found[1]))
