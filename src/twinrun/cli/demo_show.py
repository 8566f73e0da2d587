"""What the demo prints and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text as Words

from twinrun.cli.demo_text import Text
from twinrun.models.model import Model
from twinrun.records.write import write_bytes, write_json, write_text
from twinrun.report import page, plots, tables
from twinrun.report.words import short, times

MOST_TEXTS = 3
"""Shaded answers on the terminal; the page has all."""


def begin(human: Console, model: Model, text: Text) -> None:
    """Say what will run."""
    parameters = sum(p.numel() for p in model.model.parameters())
    human.print(
        Words(
            f"{model.name}, {parameters:,} parameters. "
            f"Text: {text.source}, {len(text.ids)} tokens, {text.start} of them prompt."
        )
    )


def twins(human: Console, found: dict[str, Any], number: int) -> None:
    """Print verdicts and speeds of one precision."""
    _head(human, f"{number}. Fast paths against one forward a token, {found['dtype']}")
    human.print(tables.verdict_table(found["rows"]))
    for row in found["rows"]:
        if row["verdict"] == "different":
            human.print(Words(f"{row['candidate']}: {row['reason']}; starts at {row['blame']}", style="red"))
    noise = found["noise"]
    spread = f"{short(noise['ratio_p10'])} to {short(noise['ratio_p90'])}"
    human.print(
        Words(
            f"{found['repeats']} rounds in turns; the reference against itself: "
            f"{times(noise['ratio_median'])} ({spread})",
            "dim",
        )
    )


def contrasted(human: Console, found: dict[str, Any]) -> None:
    """Print answers shaded by KL."""
    _head(human, "3. Expert against amateur on held-out problems")
    if "skipped" in found:
        human.print(Words(f"skipped: {found['skipped']}"))
        return
    texts, right = found["texts"], found["right"]
    human.print(
        Words(
            f"right answers of {len(texts)}: expert {right['expert']}, amateur {right['amateur']}; "
            f"{found['chosen']} of {len(found['kl'])} tokens have KL > {found['beta']:g} nats (underlined)"
        )
    )
    for text in texts[:MOST_TEXTS]:
        human.print()
        human.print(Words(text["question"], style="dim"))
        human.print(tables.token_text(text["tokens"], text["kl"], found["beta"]))
        answers = [
            f"{who} {text[f'{who}_answer']} ({'right' if text[f'{who}_right'] else 'wrong'})"
            for who in ("expert", "amateur")
        ]
        human.print(Words(", ".join(answers), style="dim"))
    if len(texts) > MOST_TEXTS:
        human.print(Words(f"... and {len(texts) - MOST_TEXTS} more on the page", style="dim"))


def faults(human: Console, found: list[dict[str, Any]]) -> None:
    """Print what was planted and what the verifier said."""
    _head(human, "4. Faults planted on purpose")
    for fault in found:
        verdict = fault["verdict"]
        human.print(
            Words(f"{fault['name']}: {fault['summary']} ({verdict['candidate']}, {verdict['dtype']})")
        )
        caught = Words(
            "  caught: " if fault["caught"] else "  NOT CAUGHT: ",
            style="bold green" if fault["caught"] else "bold red",
        )
        human.print(caught + tables.verdict_text(verdict["verdict"]) + Words(f", {verdict['reason']}"))
        if verdict["blame"]:
            human.print(Words(f"  blame: {verdict['blame']}"))


def filled(human: Console, found: dict[str, Any]) -> None:
    """Print both ways to fill in a canvas."""
    _head(human, "5. Masked diffusion: a cache and a threshold against plain decoding")
    human.print(tables.verdict_table(found["twins"]["rows"]))
    for way in found["ways"]:
        human.print(
            Words(
                f"{way['runner']}, {way['commit']}: {way['nfe']} forwards ({way['nfe_full']} full, "
                f"{way['nfe_block']} of a block) for {way['new_tokens']} tokens; right answers {way['right']} of "
                f"{way['problems']}",
                "dim",
            )
        )
    verdict = found["twins"]["rows"][1]
    human.print(Words(f"{verdict['verdict']}: {verdict['reason']}", "dim"))


def pruned(human: Console, found: dict[str, Any]) -> None:
    """Print what each layer was left with, and both answers."""
    _head(
        human, "6. Prompt pruning: trained scorers drop two thirds of a prompt on its way through the layers"
    )
    human.print(tables.verdict_table(found["twins"]["rows"]))
    lengths = ", ".join(map(str, found["layer_lengths"]))
    human.print(Words(f"tokens of the prompt in each layer: {lengths}", "dim"))
    human.print(Words(found["question"], "dim"))
    for way in found["ways"]:
        word = "right" if way["is_right"] else "WRONG"
        human.print(Words(f"{way['runner']}: {way['text']} ({word})", "dim"))
    verdict = found["twins"]["rows"][1]
    human.print(Words(f"{verdict['verdict']}: {verdict['reason']}", "dim"))


def write(record: dict[str, Any], out: Path) -> Path:
    """Write records, plots and the page, each whole or not at all; returns the page."""
    for twin in record["twins"]:
        for row in twin["rows"][1:]:
            name = f"{twin['dtype']}-{row['candidate']}".replace(":", "-")
            write_json(out / "records" / f"{name}.json", {**row, "env": record["env"]})
    for fault in record["faults"]:
        write_json(out / "records" / f"fault-{fault['name']}.json", {**fault, "env": record["env"]})
    write_json(out / "records" / "demo.json", record)
    rows = [row for twin in record["twins"] for row in twin["rows"]]
    write_bytes(out / "error_ratios.png", plots.error_ratios(rows))
    write_bytes(out / "speed_ups.png", plots.speed_ups(rows))
    contrast = record["contrast"]
    if "texts" in contrast:
        write_bytes(out / "kl_histogram.png", plots.kl_histogram(contrast["kl"], contrast["beta"]))
        strips = [(f"problem {i}", text["kl"]) for i, text in enumerate(contrast["texts"], 1)]
        write_bytes(out / "kl_strips.png", plots.kl_strips(strips, contrast["beta"]))
    return write_text(out / "index.html", page.render(record))


def end(human: Console, record: dict[str, Any], place: Path) -> None:
    """Print the outcome and where to look."""
    human.print()
    human.print(Words(record["outcome"], style="bold green" if record["passed"] else "bold red"))
    human.print(Words(f"{record['seconds']:.0f} s. Look at {place}; records and plots lie beside it."))


def _head(human: Console, title: str) -> None:
    human.print()
    human.print(Words(title, style="bold"))
