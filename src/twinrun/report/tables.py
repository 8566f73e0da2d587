"""Terminal tables of verdict records, and texts whose tokens are shaded by KL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from twinrun.report.words import BETA, KINDS, flips, seconds, short, speed_of, spread, times

HEAT = ("", "on #3b2a1a", "on #5c3a17", "on #8a4d12", "on #b8600b", "on #e8730c")
"""Terminal shades from no KL to much; the text on the last three is made white."""
HEAT_STEPS = (0.05, 0.15, 0.4, 1.0, 2.0)
"""Nats at which the next shade begins."""


def verdict_table(rows: Iterable[Mapping[str, Any]], title: str | None = None) -> Table:
    """Table of verdict records: what ran, the verdict, its numbers, and the speed if the verdict allows one.

    Args:
        rows: what `Verdict.to_json` returns, each with an optional `speed`: seconds_median, and
            speed_up_median, speed_up_p10, speed_up_p90 against the reference.
        title: stands above.

    Returns:
        A table for `Console.print`.
    """
    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim"
    )
    table.add_column("candidate", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in ("error ratio\nmax / RMS", "KL mean", "flips", "seconds", "speed-up\n(p10–p90)"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ratio = "–" if row.get("ratio_max") is None else f"{row['ratio_max']:.2g} / {row['ratio_rms']:.2g}"
        shown = [ratio, short(row.get("kl_mean")), flips(row), *_speed_cells(speed_of(row))]
        table.add_row(Text(str(row["candidate"])), verdict_text(str(row["verdict"])), *map(Text, shown))
    return table


def case_table(verdict: Mapping[str, Any]) -> Table:
    """Table of the cases that one verdict rests on.

    Args:
        verdict: what `Verdict.to_json` returns.

    Returns:
        A table for `Console.print`.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("case")
    for name in ("positions", "error ratio", "gap one up", "KL max", "flips"):
        table.add_column(name, justify="right")
    for case in verdict["cases"]:
        shown = [
            times(case["ratio_max"]),
            short(case["gap_up_max"]),
            short(case["kl_max"]),
            str(case["flips"]),
        ]
        table.add_row(Text(str(case["case"])), str(case["positions"]), *map(Text, shown))
    return table


def verdict_text(word: str) -> Text:
    """The verdict with its sign, coloured; the sign says the same without colour."""
    kind = KINDS[word]
    return Text(f"{kind.sign} {word}", style=kind.style)


def token_text(tokens: Sequence[str], kl: Sequence[float | None], beta: float = BETA) -> Text:
    """A text whose tokens are shaded by KL; those above `beta` are bold and underlined.

    Args:
        tokens: the text, cut into tokens.
        kl: nats at each token; None where there is none.
        beta: threshold of the chosen steps, nats.

    Returns:
        Text for `Console.print`; without colour the chosen tokens are still bold.
    """
    text = Text()
    for token, value in zip(tokens, kl, strict=True):
        level = sum(value >= edge for edge in HEAT_STEPS) if value is not None else 0
        style = " ".join(filter(None, [HEAT[level], "white" if level else ""]))
        if value is not None and value > beta:
            style = f"bold underline {style}"
        text.append(token, style=style or ("dim" if value is None else ""))
    return text


def _speed_cells(speed: Mapping[str, Any] | None) -> list[str]:
    if speed is None:
        return ["–", "–"]
    factors = (speed["speed_up_median"], speed["speed_up_p10"], speed["speed_up_p90"])
    return [seconds(speed["seconds_median"]), spread(*factors)]
