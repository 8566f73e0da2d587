"""Draw the measured table of docs/decode.md from the records of the decode benchmarks.

python benchmarks/decode_gpt.py
python benchmarks/decode_gpt2.py
python benchmarks/decode_qwen.py
python scripts/decode_page.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "decode.md"
PLACE = re.compile(r"(<!-- measured -->\n).*?(<!-- end -->)", re.S)
STATIC, GENERATE = "kv-cache:static+", "generate, GPT-2 of the same shape"


def _record(name: str) -> dict[str, Any]:
    found = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def _times(record: dict[str, Any], ratio: str) -> str:
    found = record["ratios"][ratio]
    return f"{found['ratio_median']:.2f} times ({found['ratio_p10']:.2f} to {found['ratio_p90']:.2f})"


def _row(model: str, way: str, speed: float | None, against: str) -> str:
    rate = "–" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"
    return f"| {model} | {way} | {rate} | {against} |"


def small() -> list[str]:
    """`builtin:gpt` and the ring."""
    record = _record("decode_gpt")
    speed, new = record["tokens_per_second"], record["config"]["new_tokens"]
    kl = record["verdicts"][f"{STATIC}packed, bfloat16, int8 weights, against float32"]["kl_mean"]
    ring = f"ring, packed, {record['config']['ring_tokens']:,} tokens"
    return [
        _row(f"`builtin:gpt`, float32, {new:,} tokens", "`generate` on a GPT-2 of that shape", speed[GENERATE], "1"),
        _row("", "own forward, dynamic cache", speed["kv-cache:dynamic"],
             f"{speed['kv-cache:dynamic'] / speed[GENERATE]:.2f} times `generate`"),
        _row("", "captured", speed[f"{STATIC}captured"],
             f"{_times(record, 'generate / ours, float32')}; recompute: {_times(record, 'recompute / cached')}"),
        _row("", "packed", speed[f"{STATIC}packed"], _times(record, "generate / ours, float32 packed")),
        _row("", f"packed, int8 weights, bfloat16 (lossy, KL {kl:.1e} against float32)",
             speed[f"{STATIC}packed, bfloat16, int8 weights"], _times(record, "generate / ours, int8 weights")),
        _row("", ring, speed["kv-cache:rolling+packed"],
             f"recompute over the last 1,024: {_times(record, 'recompute / ring')}"),
    ]  # fmt: skip


def middle() -> list[str]:
    """The shape of GPT-2."""
    record = _record("decode_gpt2")
    speed, share = record["tokens_per_second"], record["bandwidth"]["share_of_ceiling"]
    kl = record["verdicts"]["packed, bfloat16, int8 weights"]["kl_mean"]
    ratios = {
        n: _times(record, f"recompute / cached, prompt of {n} tokens") for n in record["against_recompute"]
    }
    lengths = "; ".join(
        f"prompt of {n} tokens: {ratios[n]}, bound {found['bound']:.1f}"
        for n, found in record["against_recompute"].items()
    )

    def read(arm: str) -> str:
        return f"{100 * share[arm]['share_median']:.0f} % of the read bandwidth"

    generate = f"GPT-2 (124M), {record['config']['new_tokens']} tokens"
    captured = speed["captured, float32"] / speed["generate, float32"]
    return [
        _row(generate, "`generate`, float32", speed["generate, float32"], "1"),
        _row("", "captured, float32", speed["captured, float32"], f"{captured:.2f} times; {read('captured, float32')}"),
        _row("", "packed, float32", speed["packed, float32"],
             f"{speed['packed, float32'] / speed['generate, float32']:.2f} times; {read('packed, float32')}"),
        _row("", "packed, bfloat16", speed["packed, bfloat16"],
             _times(record, "generate in float32 / ours, bfloat16")),
        _row("", f"packed, int8 weights, bfloat16 (lossy, KL {kl:.1e})", speed["packed, bfloat16, int8 weights"],
             _times(record, "generate in float32 / ours, int8 weights")),
        _row("", "recompute", None, f"cached steps over it, {lengths}"),
    ]  # fmt: skip


def large() -> list[str]:
    """The shape of Qwen2.5-0.5B."""
    record = _record("decode_qwen")
    speed, first = record["tokens_per_second"], record["first_run_seconds"]
    best = "generate, static cache, compiled"

    def over(arm: str) -> str:
        return f"{speed[arm] / speed[best]:.2f} times"

    share = 100 * record["bandwidth"]["share_of_ceiling"]["packed"]
    return [
        _row(f"Qwen2.5-0.5B shape, bfloat16, {record['config']['new_tokens']} tokens",
             "`generate`, dynamic cache", speed["generate, dynamic cache"], over("generate, dynamic cache")),
        _row("", "`generate`, static cache", speed["generate, static cache"], over("generate, static cache")),
        _row("", f"`generate`, static cache, compiled (first run {first[best]:.0f} s)", speed[best], "1"),
        _row("", "captured", speed["captured"], over("captured")),
        _row("", f"compiled (first run {first['compiled']:.0f} s)", speed["compiled"], over("compiled")),
        _row("", "packed", speed["packed"],
             f"{_times(record, f'{best} / packed')}; {share:.0f} % of the read bandwidth"),
    ]  # fmt: skip


def measured() -> str:
    """The table, and what the first arm's double says of the noise."""
    lines = [
        "| model | way | tokens a second | against |",
        "|---|---|---|---|",
        *small(),
        *middle(),
        *large(),
    ]
    noise = [
        f"`{name}.json` {_record(name)['ratios']['A/A noise']['ratio_median']:.2f}, "
        + ("quiet" if _record(name)["machine"]["quiet"] else "NOT quiet")
        for name in ("decode_gpt", "decode_gpt2", "decode_qwen")
    ]
    reached = _record("decode_gpt2")["bar_reached_from_prompt_tokens"]
    where = "no length measured" if reached is None else f"a prompt of {reached:.0f} tokens on"
    return "\n".join(
        [
            *lines,
            "",
            f"The first arm against itself: {'; '.join(noise)}. Thirteen times recompute on GPT-2: from {where}.",
        ]
    )


def page() -> str:
    """The page with its table as the records have it."""
    return PLACE.sub(lambda m: f"{m[1]}{measured()}\n{m[2]}", PAGE.read_text("utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
