"""A check of sequential against single pass in a terminal: a table of steps, and one of both models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from twinrun.report.tables import verdict_text
from twinrun.report.words import harmless, seconds, short, visible

SIDES = ("expert", "amateur")
RULES = {"logits": "logits", "probabilities": "probabilities", "top": "top-5 ids", "kl": "mean KL"}


def check_text(record: Mapping[str, Any], most: int | None = 12) -> Iterator[RenderableType]:
    """Yield what to print: steps of each text, then verdicts, the proposal's rule and seconds of each model.

    Args:
        record: what `Checked.to_json` returns. Text in it may hold anything; no markup in it is read.
        most: steps of a text; the first of them and the one that differs most. None is all.
    """
    for text in record["texts"]:
        yield Text(f"{harmless(text['label'])}, {len(text['steps'])} steps", style="bold")
        rows = _chosen(text["steps"], most)
        yield _steps(rows)
        if len(rows) < len(text["steps"]):
            yield Text(
                f"... and {len(text['steps']) - len(rows)} steps more (--steps 0 shows all)", style="dim"
            )
        yield Text()
    yield _models(record)
    for who in SIDES:
        verdict = record["sides"][who]["verdict"]
        yield Text(f"{who}: {verdict['reason']}", style="dim")
        if verdict["blame"] and verdict["blame"] not in verdict["reason"]:
            yield Text(f"{who} starts at: {verdict['blame']}", style="red")
    kept = record["kept"]
    yield Text(
        f"steps with KL(expert || amateur) above {record['beta']:g} nats: {kept['sequential']} sequentially, "
        f"{kept['single']} in one pass, {kept['same']} of {record['steps']} judged alike"
    )


def _chosen(steps: Sequence[Mapping[str, Any]], most: int | None) -> list[Mapping[str, Any]]:
    """The first steps and the one whose logits differ most."""
    if most is None or len(steps) <= most:
        return list(steps)

    def gap(step: Mapping[str, Any]) -> float:
        gaps = [step[who]["logit_gap"] for who in SIDES]
        return float("inf") if None in gaps else max(gaps)

    worst = max(steps, key=gap)
    first = list(steps[:most])
    return first if worst in first else [*first[:-1], worst]


def _steps(steps: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("\nstep", justify="right", no_wrap=True)
    table.add_column("\ntoken", no_wrap=True, max_width=14)
    for name in (
        "logits\nexp.", "differ\nam.", "prob.\nexp.", "differ\nam.", "top-5\ne. a.",
        "KL(E||A)\nseq.", "\none pass", "\nkept",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for step in steps:
        sides = [step[who] for who in SIDES]
        token = visible(harmless(step["token"])) if step["token"] is not None else f"#{step['token_id']}"
        cells = [
            *(_number(side["logit_gap"]) for side in sides),
            *(_number(side["probability_gap"]) for side in sides),
            "  ".join("=" if side["same_top"] else "≠" for side in sides),
            _number(step["kl_sequential"]),
            _number(step["kl_single"]),
            _kept(step),
        ]
        table.add_row(str(step["step"]), Text(token), *map(Text, cells))
    return table


def _kept(step: Mapping[str, Any]) -> str:
    if step["kept_sequential"] != step["kept_single"]:
        return "one way"
    return "yes" if step["kept_single"] else ""


def _models(record: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("sequential against one pass")
    for who in SIDES:
        table.add_column(Text(f"{who}: {harmless(record[who])}, {record['dtype'][who]}"), max_width=26)
    sides = [record["sides"][who] for who in SIDES]
    table.add_row("verdict", *(verdict_text(side["verdict"]["verdict"]) for side in sides))
    rows: dict[str, list[str]] = {
        "logits differ by at most": [_number(side["logit_gap_max"]) for side in sides],
        "probabilities differ by at most": [_number(side["probability_gap_max"]) for side in sides],
        "top-5 ids the same": [f"{side['same_top']} of {record['steps']} steps" for side in sides],
        "KL(sequential || one pass), mean": [_number(side["kl_mean"]) for side in sides],
        "the proposal's tolerances": [_met(side["proposal"]) for side in sides],
        "sequential": [seconds(side["seconds"]["sequential"]) for side in sides],
        "one pass": [seconds(side["seconds"]["single"]) for side in sides],
    }
    for name, cells in rows.items():
        table.add_row(name, *map(Text, cells))
    return table


def _met(found: Mapping[str, bool]) -> str:
    failed = [words for key, words in RULES.items() if not found[key]]
    return "not met: " + ", ".join(failed) if failed else "met"


def _number(value: float | None) -> str:
    return "no number" if value is None else short(value)
