"""The verdict: a record that explains itself in words."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from twinrun.records.env import environment
from twinrun.verify.culprit import Blame
from twinrun.verify.flips import Flips
from twinrun.verify.summary import finite_or_none
from twinrun.verify.witness import Ratio, Sweep

Word = Literal["identical", "equivalent", "lossy", "different"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `twinrun.verify` found.

    Attributes:
        verdict: "identical" (bit for bit), "equivalent" (rounding), "lossy" (inside the budget given),
            "different".
        reason: why, in words with the numbers.
        ratio_max: candidate's worst error over the reference's own; None if nothing could be compared.
        ratio_rms: the same for the root mean square.
        kl_mean: mean KL(reference || candidate) a position, nats; the other kl_* are its maximum and
            percentiles.
        dp_rms: root mean square change of the probability of the token that follows, in [0, 1].
        top1_agreement: share of positions with the same likeliest token; `top1_stderr` is its binomial
            standard error.
        flips: changes of the likeliest token, ties apart.
        blame: the first place where the sides part, in words; None when they do not.
        culprit: the same as a record, with step, position, layer and module; None where no module could be seen.
        seconds: time of each side in its own precision, of the oracle, and of the candidate one precision up.
        table: one list a column, one entry a position, for `to_pandas`.
    """

    verdict: Word
    reason: str
    reference: str
    candidate: str
    model: str
    dtype: str
    positions: int
    ratio_max: float | None
    ratio_rms: float | None
    kl_mean: float | None
    kl_max: float | None
    kl_p999: float | None
    kl_p99: float | None
    kl_p95: float | None
    kl_p50: float | None
    dp_rms: float | None
    top1_agreement: float | None
    top1_stderr: float | None
    flips: Flips
    blame: str | None
    findings: list[str]
    ratio: Ratio | None
    sweep: Sweep
    seconds: dict[str, float]
    paths: dict[str, str]
    cases: list[dict[str, Any]] = field(repr=False)
    table: dict[str, list[Any]] = field(repr=False)
    culprit: Blame | None = field(default=None, repr=False)
    env: dict[str, Any] = field(default_factory=environment, repr=False)

    @property
    def passed(self) -> bool:
        """True unless the verdict is "different"."""
        return self.verdict != "different"

    def __str__(self) -> str:
        """The verdict in words."""
        return f"{self.verdict}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """Return the record without the per-position table, as plain JSON types; Inf and NaN become None."""
        record: dict[str, Any] = finite_or_none(asdict(self))
        del record["table"]
        if record["culprit"] is not None:
            del record["culprit"]["table"]
        return record

    def to_pandas(self) -> Any:
        """Return one row a position: case, position, KL, errors, top-1 of both sides, margin."""
        import pandas as pd

        return pd.DataFrame(self.table)

    def _repr_html_(self) -> str:
        """Show as a small table in a notebook; text from the model or the user is escaped."""
        shown = {
            "model": f"{self.model} ({self.dtype})",
            "reference": self.reference,
            "candidate": self.candidate,
            "positions": self.positions,
            "error ratio, max / RMS": f"{_show(self.ratio_max)} / {_show(self.ratio_rms)}",
            "KL mean / max": f"{_show(self.kl_mean)} / {_show(self.kl_max)}",
            "flips": f"{self.flips.ties} ties, {self.flips.real} real",
        }
        rows = "".join(
            f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in shown.items()
        )
        return f"<p><b>{self.verdict}</b>: {html.escape(self.reason)}</p><table>{rows}</table>"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
