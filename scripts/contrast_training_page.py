"""Draw the measured tables of docs/contrast-training.md from the record of benchmarks/contrast_train.py.

python benchmarks/contrast_train.py
python scripts/contrast_training_page.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

from measured_page import DOCS, drawn, read

RECORD = "contrast_train"
PAGE = DOCS / "contrast-training.md"
BASE = "base"


def results(record: dict[str, Any]) -> str:
    """Every arm on the same held-out problems, against the base and against SFT with the same settings."""
    lines = [
        "| arm | settings | right | minus base (95 %) | McNemar p | minus SFT of the same settings (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for name, side in record["sides"].items():
        gap, sft = _pair(record, name, BASE), _pair(record, name, _sft_of(name, record))
        p = "" if gap is None else f"{gap['sign_p']:.2g}"
        cells = [name, _words(record["results"][name]["request"], record), f"{100 * side['accuracy']:.2f} %"]
        lines.append("| " + " | ".join([*cells, _points(gap), p, _points(sft)]) + " |")
    steps = record["config"]["steps"]
    held_out = sum(int(stratum["items"]) for stratum in record["sides"][BASE]["strata"].values())
    return "\n".join(
        [
            *lines,
            "",
            f"{record['config']['problems']:,} training problems, {held_out:,} held-out ones, "
            f"greedy; float32, 16 answers a step, {steps} steps where no other number stands. Differences in points. "
            f"{record['intervals']}.",
        ]
    )


def by_steps(record: dict[str, Any]) -> str:
    """Right answers by the number of worked steps."""
    names = [n for n in ("base", "contrast", "sft", "uniform") if n in record["sides"]]
    strata = sorted(record["sides"][BASE]["strata"])
    lines = ["| arm | " + " | ".join(strata) + " |", "|---|" + "---|" * len(strata)]
    for name in names:
        held = record["sides"][name]["strata"]
        cells = [f"{100 * held[s]['right'] / held[s]['items']:.1f} % of {held[s]['items']}" for s in strata]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(record: dict[str, Any]) -> str:
    """Forward tokens a tuned token."""
    lines = [
        "| beta | word problems: steps an answer | fewer tokens | other questions: steps an answer | fewer tokens |",
        "|---|---|---|---|---|",
    ]
    others = {c["beta"]: c for c in record["other_costs"]}
    for cost in record["costs"]:
        other = others.get(cost["beta"])
        cells = [_kept(cost), f"{cost['row_per_step_over_packed']:.1f}x"]
        cells += ["", ""] if other is None else [_kept(other), f"{other['row_per_step_over_packed']:.1f}x"]
        lines.append(f"| {cost['beta']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def labels(record: dict[str, Any]) -> str:
    """What the labels know."""
    k = record["labels"]
    texts = "; ".join(f"{text}: {count}" for text, count in k["first_wrong_tokens_by_text"].items())
    return "\n".join(
        [
            f"- Above beta {k['beta']:g}, {k['labels_of_one_id']:,} of {k['steps_kept']:,} labels hold one id: the "
            "token that the expert wrote anyway.",
            f"- {k['wrong_answers']} answers are wrong. Their first wrong token lies above beta in "
            f"{k['of_these_above_beta']} of {k['first_wrong_tokens']} cases ({texts}).",
            f"- The label holds the right token in {k['of_these_right_token_in_label']} of these and prefers it in "
            f"{k['of_these_label_prefers_right_token']}.",
            f"- Right answers have {k['undecided_steps_of_right_answers']} undecided steps (two ids or more in the "
            f"label); the label prefers another token, a wrong one, in {k['of_these_label_prefers_another_token']}.",
        ]
    )


DRAWN = {"results": results, "by_steps": by_steps, "costs": costs, "labels": labels}


def _sft_of(name: str, record: dict[str, Any]) -> str:
    """The SFT arm with the same optimizer, adapter and number of steps, or none."""
    keys = ("learning_rate", "r", "all_linear", "steps")
    mine = record["results"][name]["request"]
    if mine["method"] in (None, "sft"):
        return ""
    for other, found in record["results"].items():
        if found["request"]["method"] == "sft" and all(found["request"][k] == mine[k] for k in keys):
            return str(other)
    return ""


def _pair(record: dict[str, Any], after: str, before: str) -> dict[str, Any] | None:
    """Difference of two sides, whichever order the record has them in."""
    for pair in record["pairs"]:
        if (pair["a"], pair["b"]) == (after, before):
            return dict(pair)
        if (pair["a"], pair["b"]) == (before, after):
            turned = {"difference": -pair["difference"], "low": -pair["high"], "high": -pair["low"]}
            return {**pair, **turned}
    return None


def _points(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    return f"{100 * pair['difference']:+.2f} ({100 * pair['low']:+.2f} to {100 * pair['high']:+.2f})"


def _words(request: dict[str, Any], record: dict[str, Any]) -> str:
    if request["method"] is None:
        return "untrained"
    words = [request["method"], f"lr {request['learning_rate']:g}", f"r {request['r']}"]
    words.append("all linear layers" if request["all_linear"] else "q and v")
    words += [f"beta {request['beta']:g}"] if request["method"] != "sft" else []
    words += [f"alpha {request['alpha']:g}"] if request["alpha"] != 0.2 else []
    words += [f"answers sampled at temperature {request['temperature']:g}"] if request["temperature"] else []
    words += ["right answers only"] if request["only_right"] else []
    words += ["an older self as amateur"] if request["amateur"] == "older" else []
    words += [f"{request['steps']} steps"] if request["steps"] else []
    tuned = record["results"][request["name"]]["training"]["cost"]["steps"]
    return ", ".join([*words, f"{tuned:,} tuned tokens"])


def _kept(cost: dict[str, Any]) -> str:
    return f"{cost['steps'] / cost['lessons']:.1f}"


def page() -> str:
    """The page with its tables drawn from the record."""
    record = read(RECORD)
    return drawn(PAGE, {name: partial(draw, record) for name, draw in DRAWN.items()})


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
