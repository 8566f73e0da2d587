"""Draw the measured tables of docs/token-skip.md from the record of benchmarks/diffusion_skip.py.

python benchmarks/diffusion_skip.py
python scripts/token_skip_page.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

from measured_page import DOCS, drawn, read

RECORD = "diffusion_skip"
PAGE = DOCS / "token-skip.md"
CHOSEN_ON = 200
"""The settings were chosen by looking at the first so many problems."""


def speed(record: dict[str, Any]) -> str:
    """Steps and decodes of every arm against the dual cache."""
    lines = [
        "| model, commits, arm | skipped | bound | bound by layer costs | a step | a decode |",
        "|---|---|---|---|---|---|",
    ]
    for name, s in record["speed"].items():
        share = f"{100 * s['skip_ratio']:.0f} %"
        ratios = (s["bound_ratio"], s.get("layer_bound_ratio"), s["step_ratio"], s["decode_ratio"])
        cells = ("–" if r is None else f"{r:.2f}x" for r in ratios)
        lines.append(f"| {name} | {share} | " + " | ".join(cells) + " |")
    noise = [r["ratio_median"] for name, r in record["ratios"].items() if name.endswith("A/A noise")]
    others = record["machine"]["cores_used_by_others_mean"]
    quiet = "a quiet machine" if record["machine"]["quiet"] else f"a SHARED machine ({others:.1f} cores busy)"
    return "\n".join(
        [
            *lines,
            "",
            f"Measured on {quiet}; the dual cache against itself: {min(noise):.2f} to {max(noise):.2f}.",
            *_shares(record),
        ]
    )


def _shares(record: dict[str, Any]) -> list[str]:
    """What of a step the deep layers' skipped tokens are at all, in words."""
    found = (
        (name, s["saved_share_at_most"]) for name, s in record["speed"].items() if "saved_share_at_most" in s
    )
    words = "; ".join(f"{name} {100 * share:.0f} %" for name, share in found)
    return ["", f"Share of a step that leaving out those tokens can save at all: {words}."] if words else []


def accuracy(record: dict[str, Any]) -> str:
    """Answers, forwards and skip ratios of every arm."""
    lines = ["| commits: arm | exact | 95 % interval | forwards | skipped |", "|---|---|---|---|---|"]
    for name, s in record["accuracy"].items():
        low, high = (100 * x for x in s["interval_95"])
        right = f"{s['hits']} of {s['problems']}"
        share = f"{100 * s['skip_ratio']:.0f} %"
        lines.append(f"| {name} | {right} | {low:.1f} to {high:.1f} % | {s['forwards']} | {share} |")
    fresh = record.get("first_problem", 0) >= CHOSEN_ON
    word = "on other problems" if fresh else "on these same problems, which flatters them"
    return "\n".join([*lines, "", f"The settings were chosen {word}."])


def layers(record: dict[str, Any]) -> str:
    """What one layer costs with fewer tokens."""
    costs = record["layer_costs"]
    lines = ["| tokens | " + " | ".join(costs) + " |", "|---|" + "---|" * len(costs)]
    for row in zip(*costs.values(), strict=True):
        cells = [f"{1e3 * c['seconds_median']:.2f} ms, {100 * c['efficiency']:.0f} %" for c in row]
        lines.append(f"| {row[0]['tokens']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


DRAWN = {"speed": speed, "accuracy": accuracy, "layers": layers}


def page() -> str:
    """The page with its tables as the record has them."""
    record = read(RECORD)
    return drawn(PAGE, {name: partial(draw, record) for name, draw in DRAWN.items()})


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
