"""Draw the measured tables of docs/prune-training.md from their records.

python scripts/train_scorers.py --ablation
python benchmarks/prune_quality.py
python scripts/prune_training_page.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

from measured_page import DOCS, drawn, read

PAGE = DOCS / "prune-training.md"
MODES = {"end": "question in the prompt", "unseen": "question unseen"}
SIDES = {"none": "whole prompt", "learned": "learned", "oracle": "oracle (saliency of the right answer)"}
VARIANTS = {
    "full": "all three terms",
    "without-mse": "without MSE",
    "without-ranking": "without ranking",
    "without-both": "without both (language-model loss alone)",
    "offline": "offline (MSE and ranking alone)",
}


def ablation(record: dict[str, Any]) -> str:
    """Exact answers and predictions of every variant, then of the other ways to choose."""
    tasks = list(record["variants"]["full"]["exact"])
    lines = [
        f"| loss | {' | '.join(tasks)} | overlap with saliency at layer {', '.join(_layers(record))} |",
        "|---|" + "---|" * (len(tasks) + 1),
    ]
    for name, found in record["variants"].items():
        overlaps = ", ".join(f"{x:.2f}" for x in _overlaps(found["prediction"]))
        lines.append(f"| {VARIANTS[name]} | {_rates(found['exact'], tasks)} | {overlaps} |")
    for name, rates in record["other"].items():
        chance = ", ".join(f"{x:.2f}" for x in _overlaps(record["variants"]["full"]["prediction"], "chance"))
        lines.append(f"| *{name}* | {_rates(rates, tasks)} | {chance if name == 'random' else ''} |")
    recipe = record["recipe"]
    stages = ", ".join(f"layer {layer}: {keep}" for layer, keep in recipe["stages"])
    return "\n".join(
        [
            *lines,
            "",
            f"`{record['model']}`, {recipe['samples']} training texts of up to {recipe['tokens']} tokens, "
            f"{recipe['epochs']} epochs, seed {recipe['seed']}; {stages}. Exact answers to "
            f"{recipe['held_out']} held-out texts with 95 % Wilson intervals; overlap: share of the highest targets "
            "among the kept, mean over the tasks.",
        ]
    )


def quality(record: dict[str, Any]) -> str:
    """Scores of every side and what the learned choice is worth more, in both modes."""
    lines = [
        "| tokens chosen by | "
        + " | ".join(f"{w}: score | learned minus this" for w in MODES.values())
        + " |",
        "|---|" + "---|---|" * len(MODES),
    ]
    sides = sorted(
        dict.fromkeys(row["side"] for row in record["overall"]), key=lambda s: (s != "none", s != "learned")
    )
    for side in sides:
        cells = [c for mode in MODES for c in (_score(record, side, mode), _gain(record, side, mode))]
        lines.append(f"| {SIDES.get(side, side)} | " + " | ".join(cells) + " |")
    config, stages = record["config"], record["schedule"]
    keep = ", ".join(f"layer {layer}: {share:g}" for layer, share in stages.items())
    return "\n".join(
        [
            *lines,
            "",
            f"RULER's score in percent with 95 % intervals, {config['items']} items for each of "
            f"{', '.join(record['tasks'])} at {config['lengths'].replace(',', ' and ')} tokens; "
            f"differences in points, paired. Schedule: {keep}.",
        ]
    )


def by_task(record: dict[str, Any]) -> str:
    """Scores task by task and length by length."""
    cells = {(c["task"], c["length"], c["mode"], c["side"]): c for c in record["cells"]}
    sides = [s["side"] for s in record["overall"] if s["mode"] == "end"]
    sides.sort(key=lambda s: (s != "none", s != "learned"))
    lines = [f"| task, tokens | {' | '.join(sides)} |", "|---|" + "---|" * len(sides)]
    for task, length in dict.fromkeys((c["task"], c["length"]) for c in record["cells"]):
        scores = [" / ".join(_percent(cells[task, length, mode, side]) for mode in MODES) for side in sides]
        lines.append(f"| {task}, {length:,} | " + " | ".join(scores) + " |")
    return "\n".join([*lines, "", "Question in the prompt / question unseen."])


def saliency(record: dict[str, Any]) -> str:
    """Exact answers behind tokens that were chosen by saliency of one kind or another."""
    tasks = list(record["chosen"]["random"])
    lines = [f"| tokens chosen by | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    lines += [f"| {name} | {_rates(rates, tasks)} |" for name, rates in record["chosen"].items()]
    return "\n".join([*lines, "", _texts(record)])


def stages(record: dict[str, Any]) -> str:
    """Exact answers behind one random stage, layer by layer."""
    tasks = list(record["chosen"]["random"])
    lines = [f"| random choice at layer | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    lines += [f"| {layer} | {_rates(rates, tasks)} |" for layer, rates in record["one_random_stage"].items()]
    keep = f"One stage that keeps {100 * record['config']['keep']:.0f} %. "
    return "\n".join([*lines, "", keep + _texts(record)])


def _texts(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"Exact answers with 95 % Wilson intervals, {config['samples']} held-out texts of up to "
        f"{config['tokens']} tokens, the question in the prompt."
    )


DRAWN = {
    "saliency": (saliency, "prune_saliency"),
    "stages": (stages, "prune_saliency"),
    "ablation": (ablation, "scorer_ablation"),
    "quality": (quality, "prune_quality"),
    "by_task": (by_task, "prune_quality"),
}


def _percent(cell: dict[str, Any]) -> str:
    return "–" if cell["score"] is None else f"{100 * cell['score']:.0f}"


def _score(record: dict[str, Any], side: str, mode: str) -> str:
    row = next(r for r in record["overall"] if (r["side"], r["mode"]) == (side, mode))
    return f"{100 * row['score']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _gain(record: dict[str, Any], side: str, mode: str) -> str:
    for p in record["pairs"]:
        if (p["a"], p["b"], p["mode"], p["task"]) == (side, "learned", mode, None):
            mean, low, high = (0.0 - 100 * p[k] for k in ("difference", "high", "low"))
            return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return ""


def _layers(record: dict[str, Any]) -> list[str]:
    return [str(layer) for layer, _keep in record["recipe"]["stages"]]


def _overlaps(prediction: dict[str, Any], key: str = "overlap") -> list[float]:
    """Mean over the tasks, layer by layer."""
    return [sum(each[key] for each in layer) / len(layer) for layer in zip(*prediction.values(), strict=True)]


def _rates(rates: dict[str, Any], tasks: list[str]) -> str:
    found = []
    for task in tasks:
        low, high = rates[task]["interval_95"]
        found.append(f"{100 * rates[task]['exact']:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
    return " | ".join(found)


def page() -> str:
    """The page with its tables drawn from the records."""
    tables = {name: partial(draw, read(source)) for name, (draw, source) in DRAWN.items()}
    return drawn(PAGE, tables)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
