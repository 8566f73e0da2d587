"""How numbers and verdicts are worded, once for the terminal, the plots and the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)

RATIO_MAX, RATIO_RMS = 2.0, 1.5
"""The rule that `twinrun.verify` judges by; a test holds that these are its numbers."""
BETA = 0.4
"""LightReasoner's threshold on a step's KL, nats (arXiv:2510.07962)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one verdict is shown: a sign (never colour alone), a terminal style, and what it means."""

    sign: str
    style: str
    meaning: str


KINDS: dict[str, Kind] = {
    "identical": Kind("=", "green", "every logit agrees bit for bit."),
    "equivalent": Kind(
        "≈",
        "green",
        "the sides differ, and rounding explains it: the candidate errs no more than the reference itself "
        "does, and one precision up the difference collapses.",
    ),
    "lossy": Kind(
        "~", "yellow", "different by design (pruning, skipping, quantising), inside the budget given."
    ),
    "different": Kind("≠", "red", "rounding does not explain it: a bug, or outside the budget."),
    "reference": Kind("·", "dim", "the plain path that the others are held against."),
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "reference, candidate",
        "the side that is trusted, and the side on trial. Both score the same tokens (teacher forcing).",
    ),
    ("oracle", "the reference run one precision up. It is the ruler, not a side."),
    (
        "error ratio",
        "the candidate's error against the oracle, divided by the reference's own error. "
        f"The rule: at most {RATIO_MAX:g}× for the worst token and {RATIO_RMS:g}× in the root mean square, "
        "wider over few positions, where the reference may be right by luck.",
    ),
    (
        "sweep",
        "both sides again, one precision up. Rounding shrinks by orders of magnitude; a logic bug stays "
        "where it is. Ratio and sweep are two witnesses; either convicts.",
    ),
    (
        "flip, tie flip",
        "a position where the likeliest token changes. It is a tie when the oracle's two likeliest tokens "
        "lie closer together than the rounding noise.",
    ),
    ("KL", "how far apart two predictions of the next token are, in nats; 0 means the same."),
    ("A/A", "the reference timed against itself in the same rounds: the noise of this machine."),
)


def short(value: float | None) -> str:
    """Three digits, or a dash for the unknown.

    Example:
        >>> short(1.2345), short(None), short(0.0), short(123456.0), short(2.3e-7)
        ('1.23', '–', '0', '1.2e5', '2.3e-7')
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def times(value: float | None) -> str:
    """A factor: `1.15×`, `11,000×`; a dash for the unknown."""
    if value is None:
        return "–"
    return f"{float(f'{value:.2g}'):,.0f}×" if 1000 <= value < 1e7 else f"{short(value)}×"


def seconds(value: float | None) -> str:
    """A duration with its unit: `35 ms`, `3.98 s`."""
    if value is None:
        return "–"
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def spread(median: float, low: float, high: float) -> str:
    """A factor with its 10th and 90th percentile, in as many decimals as the factor: `3.1× (2.9–3.4)`."""
    places = max(0, 1 - math.floor(math.log10(max(median, 1.0))))
    return f"{median:.{places}f}× ({low:.{places}f}–{high:.{places}f})"


def flips(row: Mapping[str, Any]) -> str:
    """Flips of a verdict record: `none`, `4 ties`, `3 real, 4 ties`; a dash when there is no verdict."""
    found = row.get("flips")
    if found is None:
        return "–"
    ties, real = int(found["ties"]), int(found["real"])
    parts = [f"{real} real"] if real else []
    parts += [f"{ties} tie{'' if ties == 1 else 's'}"] if ties else []
    return ", ".join(parts) or "none"


def speed_of(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The speed of a verdict record, or None: without a verdict that passes there is no speed to show."""
    if row.get("verdict") not in KINDS or row["verdict"] == "different":
        return None
    found: Mapping[str, Any] | None = row.get("speed")
    return found


def visible(token: str) -> str:
    """A token whose white space can be seen: `␣` is the blank, `↵` the line break, `⇥` the tab."""
    return token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


def harmless(text: str | None) -> str:
    r"""Text in which characters that cannot be seen, or that turn others around, stand as their code point.

    Example:
        >>> harmless("a\u202eb\x00")
        'a⟨202E⟩b⟨0000⟩'
    """
    return _UNSEEN.sub(lambda found: f"⟨{ord(found[0]):04X}⟩", text or "")


def limits(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return what a verdict record allows of its two error ratios; they widen over few positions."""
    ratio = row.get("ratio") or {}
    return float(ratio.get("allowed_max", RATIO_MAX)), float(ratio.get("allowed_rms", RATIO_RMS))
