"""Draw the measured table of docs/prune.md from the record of benchmarks/prune_table2.py.

python benchmarks/prune_table2.py
python scripts/prune_page.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

from measured_page import DOCS, drawn, read

RECORD = "prune_table2"
PAGE = DOCS / "prune.md"


def table2(record: dict[str, Any]) -> str:
    """Every length and keep ratio: speeds, what operations allow, what is left."""
    lines = [
        "| prompt | side | prefill | operations allow | reached | end to end | kept | mean keep, keep² "
        "| cache, peak memory saved |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in record["rows"]]
    machines = record["machine_by_length"].values()
    quiet = "a quiet machine" if all(m["quiet"] for m in machines) else "a SHARED machine"
    config = record["config"]
    noise = [row["noise"]["prefill"]["ratio_median"] for row in record["rows"]]
    itself = f"{min(noise):.2f} to {max(noise):.2f}"
    return "\n".join(
        [
            *lines,
            "",
            f"Shape of Qwen2.5-0.5B, bfloat16, two cores, {quiet}, {config['repeats']} rounds in turns, "
            f"{config['new_tokens']} new tokens (the paper writes 128; a prompt weighs more here). Factors are "
            f"medians of paired rounds (p10 to p90). The whole prompt against itself: {itself} in the prefill.",
        ]
    )


def _line(row: dict[str, Any]) -> str:
    side = row["pruned"]
    cells = [
        f"{row['length']:,}",
        row["side"],
        _gain(row, "prefill"),
        f"{row['flops_allow']:.2f}x",
        f"{100 * row['share_of_flops']:.0f} %",
        _gain(row, "total"),
        f"{side['tokens_kept']:,}",
        f"{side['mean_keep']:.2f}, {side['mean_keep_squared']:.2f}",
        f"{100 * row['kv_reduction']:.0f} %, {100 * row['memory_reduction']:.0f} %",
    ]
    return "| " + " | ".join(cells) + " |"


def _gain(row: dict[str, Any], what: str) -> str:
    low, high = row["speedup_p10"][what], row["speedup_p90"][what]
    return f"{row['speedup'][what]:.2f}x ({low:.2f} to {high:.2f})"


DRAWN = {"table2": table2}


def page() -> str:
    """The page with its table drawn from the record."""
    record = read(RECORD)
    return drawn(PAGE, {name: partial(draw, record) for name, draw in DRAWN.items()})


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
