"""Where two runs part: the record that `twinrun.blame` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from twinrun.verify.summary import finite_or_none

Kind = Literal[
    "none", "module", "input ids", "positions", "mask", "cache", "scores", "shapes", "not comparable"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """The first place where inputs agree within noise and outputs do not.

    Attributes:
        kind: what is wrong there: a module's own computation, or what it was handed (input ids, position ids,
            the attention mask, the cache), or the scores that left the runner although every module agrees.
            "none": nothing differs beyond rounding. "not comparable": the two sides have no modules in common.
        sentence: all of it in words, with the numbers.
        module: path of the module in the candidate; for "mask" and "cache" the attention module they reach.
        layer: number of the decoder layer, None outside of the layers.
        step: forward of the candidate in which it happens, from 0.
        position: absolute position of the token, from 0, padding not counted.
        row: row of the batch.
        mode: "propagated" (each side's module on its own inputs) or "shadow" (confirmed by feeding the
            reference's inputs to the candidate's module).
        precision: in which precision the two were compared.
        error_in, error_out: relative difference of the module's inputs and outputs at that position.
        noise: what rounding explains at the outputs.
        table: one line a module in order of execution: worst errors over positions, and in which precision. Where the
            first look settled it, layers as they ran and the modules of one layer one precision up.
    """

    kind: Kind
    sentence: str
    module: str | None = None
    layer: int | None = None
    step: int | None = None
    position: int | None = None
    row: int | None = None
    mode: Literal["propagated", "shadow"] = "propagated"
    precision: str = ""
    error_in: float | None = None
    error_out: float | None = None
    noise: float | None = None
    case: str = ""
    table: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def found(self) -> bool:
        """Whether a place was found."""
        return self.kind not in ("none", "not comparable")

    def __str__(self) -> str:
        """The sentence."""
        return self.sentence

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON types; Inf and NaN become None."""
        record: dict[str, Any] = finite_or_none(asdict(self))
        return record

    def to_pandas(self) -> Any:
        """Return one row a module in order of execution."""
        import pandas as pd

        return pd.DataFrame(self.table)
